"""The package gguf is needed where a GGUF file is read, and nowhere else."""

import subprocess
import sys

PROGRAM = """
import sys
sys.modules["gguf"] = None  # what is not installed
import llmopt.bench.sweep, llmopt.engine.llm, llmopt.models.loader
"""


def test_runtime_and_benchmark_are_imported_without_it():
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
