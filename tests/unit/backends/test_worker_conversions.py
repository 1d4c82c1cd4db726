import os
from pathlib import Path

import pytest

from llmopt.backends.conversions import conversion_directory

FP16 = {"export_args": ["--weight-format", "fp16"], "dtype": "bfloat16"}


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("LLMOPT_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def checkpoint(tmp_path) -> Path:
    path = tmp_path / "model"
    path.mkdir()
    (path / "model.safetensors").write_bytes(b"weights")
    return path


def test_the_same_conversion_is_the_same_directory(checkpoint):
    found = conversion_directory("openvino", checkpoint, FP16)
    assert found == conversion_directory("openvino", checkpoint, FP16 | {"dtype": "float32"})
    assert found.parent.is_dir()
    assert not found.exists()


def test_another_conversion_or_other_weights_are_another(checkpoint):
    found = {conversion_directory("openvino", checkpoint, FP16)}
    found.add(conversion_directory("openvino", checkpoint, {"export_args": ["int4"]}))
    weights = checkpoint / "model.safetensors"
    os.utime(weights, ns=(0, 0))
    found.add(conversion_directory("openvino", checkpoint, FP16))
    weights.write_bytes(b"others.")
    found.add(conversion_directory("openvino", checkpoint, FP16))
    found.add(conversion_directory("another", checkpoint, FP16))
    assert len(found) == 5
