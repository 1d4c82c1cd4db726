"""The doctor says what is there, what is not, and how to add it."""

import importlib.util
import os
import shutil
import sys
from pathlib import Path

import pytest
import torch

from llmopt.hardware import doctor
from llmopt.hardware.doctor import Finding, diagnose


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("LLMOPT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def find(name: str) -> Finding:
    (finding,) = [f for f in diagnose() if f.name == name]
    return finding


def test_every_part_is_named_once() -> None:
    names = [finding.name for finding in diagnose()]
    assert len(names) == len(set(names))
    assert {"python", "torch", "cpu", "gpu", "lm_eval", "cache"} <= set(names)


def test_what_is_here_is_found() -> None:
    found = find("torch")
    assert found == Finding("torch", "ok", found.detail)
    assert torch.__version__.startswith(found.detail)  # which may go on with the build: +cpu
    assert find("python").detail.startswith(".".join(map(str, sys.version_info[:3])))


def test_what_is_missing_comes_with_a_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    finding = find("lm_eval")
    assert finding.state == "off"
    assert finding.detail.startswith("not installed (")
    assert finding.command == 'pip install "llmopt[tasks]"'


def test_a_required_package_that_is_missing_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "_version", lambda name: None if name == "gguf" else "1")
    assert find("gguf") == Finding("gguf", "missing", "not installed", "pip install gguf")


def test_an_optional_package_is_looked_up_and_not_imported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "lm_eval.py").write_text("raise RuntimeError('imported')")
    monkeypatch.syspath_prepend(str(tmp_path))
    assert find("lm_eval").state == "ok"
    assert "lm_eval" not in sys.modules


@pytest.mark.skipif(
    not hasattr(torch.ops.aten, "_weight_int8pack_mm"), reason="this torch has no int8 kernel"
)
def test_kernels_are_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    assert find("int8 kernel (CPU)").state == "ok"
    monkeypatch.setattr(doctor, "_agrees", lambda matmul, weight: False)
    assert "wrong products" in find("int8 kernel (CPU)").detail


def test_a_kernel_that_raises_is_off(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: object) -> None:
        raise RuntimeError("not for this CPU\nstack")

    monkeypatch.setattr(doctor, "pack_int4", fail)
    finding = find("int4 kernel (CPU)")
    assert finding.state == "off"
    assert "cannot run it (not for this CPU); weights are dequantized" in finding.detail


def test_wrong_products_do_not_agree() -> None:
    weight = torch.arange(32, dtype=torch.float64).reshape(1, 32)
    assert doctor._agrees(lambda x: (x.double() @ weight.t()).bfloat16(), weight)
    assert not doctor._agrees(lambda x: (x.double() @ weight.flip(1).t()).bfloat16(), weight)


def test_no_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: None)
    assert find("C++ compiler").state == "off"


def test_the_cached_model_is_seen(cache: Path) -> None:
    before = find("default model")
    assert (before.state, before.command) == ("off", "llmopt generate smollm2-135m -p Hello")
    other, model = (cache / "models" / "v1" / name for name in ("gemma3-270m", "smollm2-135m"))
    for directory in (other, model):
        assert find("default model").state == "off"
        directory.mkdir(parents=True)
        (directory / "config.json").touch()
    assert find("default model") == Finding("default model", "ok", str(model))


def test_a_cache_that_cannot_be_written(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert find("cache").state == "ok"
    assert not cache.exists()  # looking makes nothing
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    finding = find("cache")
    assert finding.state == "missing"
    assert "not writable" in finding.detail
    assert finding.command == "export LLMOPT_CACHE=DIRECTORY"


def test_a_full_disk(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage("/")._replace(free=1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    assert "too little for the default model" in find("cache").detail
