"""`llmopt quantize --engine` with the real engines on a tiny model.

Each runs where its environment is found: see `test_engines.py`.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from tokenizers import pre_tokenizers

from llmopt.environment.catalogue import find_environment
from llmopt.environment.installation import find_installation
from llmopt.quantize.engines.catalogue import find_engine

pytestmark = pytest.mark.engines


@pytest.fixture(scope="module")
def model(make_tiny_llama, byte_level_tokenizer) -> Path:
    """Wide enough for the blocks of every engine, in bfloat16 as real models are."""
    sizes = {"vocab_size": 608, "hidden_size": 256, "intermediate_size": 512}
    path = make_tiny_llama(**sizes, initializer_range=0.1, dtype="bfloat16")
    byte_level_tokenizer(pre_tokenizers.ByteLevel(add_prefix_space=False)).save_pretrained(path)
    return path


@pytest.mark.parametrize(
    ("engine", "args"),
    [
        ("gptqmodel", ("--method", "gptq", "--group-size", "32")),
        ("bitsandbytes", ("--method", "nf4", "--double-quant")),
        ("llm-compressor", ("--method", "fp8")),
        ("llama.cpp", ("--method", "gguf", "--mix", "q4_k_m", "--gguf-pre", "gpt-2")),
    ],
)
def test_an_engines_checkpoint_is_proved(model, tmp_path, engine, args):
    environment = find_environment(find_engine(engine).environment)
    if find_installation(environment).python is None:
        pytest.skip(f"no environment: run `llmopt backend install {environment.name}`")
    words = ["quantize", str(model), "--engine", engine, "--out", str(tmp_path / "out"), *args]
    words += ["--samples", "8", "--sample-tokens", "64", "--json"]
    done = subprocess.run(
        [sys.executable, "-m", "llmopt", *words],
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
        env={**os.environ, "OMP_NUM_THREADS": "1", "LLMOPT_CACHE": str(tmp_path / "cache")},
    )
    assert done.returncode == 0, done.stderr
    content = json.loads(done.stdout)
    assert len(content["modules"]) == 14
    assert content["proof"]["smoke"]["prompt"]
    assert content["proof"]["verdicts"]
    card = (tmp_path / "out" / "README.md").read_text()
    assert f"--engine {engine}" in card
    assert sorted(p.name for p in tmp_path.iterdir() if p.name != "cache") == ["out"]
