"""The kernels of attention compile for sm_90 as they are launched at shapes of real models."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

TRITON = importlib.util.find_spec("triton")
HAS_PTXAS = TRITON is not None and any(
    Path(place, "backends/nvidia/bin/ptxas").exists()
    for place in TRITON.submodule_search_locations or ()
)
CASES = ("paged_attention 8b prefill bf16", "paged_attention 8b decode int8")
CODE = """
import sys
from llmopt_kernels.aot import all_cases, compile_case
cases = {case.name: case for case in all_cases(["paged_attention", "store_kv", "rotary"])}
for name in sys.argv[1:]:
    report = compile_case(cases[name])
    assert report.problems(cases[name]) == [], report
    print(name, report.has_wgmma)
"""


@pytest.mark.skipif(not HAS_PTXAS, reason="Triton with its ptxas is not installed")
def test_attention_compiles_for_hopper(tmp_path):
    """The rest by `python -m llmopt_kernels.aot`; a chunk's products run on Hopper's tensor cores
    without a register spilled.
    """
    environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    environment["TRITON_CACHE_DIR"] = str(tmp_path)
    done = subprocess.run(
        [sys.executable, "-c", CODE, *CASES],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [f"{CASES[0]} True", f"{CASES[1]} False"]
