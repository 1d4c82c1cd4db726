"""`llmopt quantize` with every format, as a user meets it."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from llmopt.formats.checkpoint import CheckpointReader


def quantize(*args: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "llmopt", "quantize", *map(str, args)],
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )


@pytest.mark.parametrize("name", ["gptq", "awq", "compressed-tensors"])
def test_asymmetric_weights_in_every_format(tiny_llama, tmp_path, name):
    args = ("--method", "rtn", "--group-size", "32", "--asymmetric", "--format", name, "--json")
    done = quantize(tiny_llama, "--out", tmp_path / "out", *args)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["out"] == str(tmp_path / "out")
    config = CheckpointReader(tmp_path / "out").config["quantization_config"]
    assert config["quant_method"] == name
    record = json.loads((tmp_path / "out" / "quantization.json").read_text())
    assert (record["format"], record["scheme"]) == (name, "rtn-w4g32-asym")


def test_a_format_that_cannot_hold_the_weights_is_refused_at_once(tmp_path):
    """Before the model is even looked for."""
    done = quantize("no-such-model", "--out", tmp_path / "out", "--bits", "8", "--format", "awq")
    assert done.returncode == 2
    assert done.stdout == ""
    (line,) = (line for line in done.stderr.splitlines() if line.startswith("error: "))
    assert "awq checkpoints hold 4-bit weights in groups only" in line
    assert "gptq, compressed-tensors" in line
