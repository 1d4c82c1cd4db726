"""Tuned launch configurations and the choice of a kernel's version, without a GPU."""

import subprocess
import sys

import pytest
import torch

from llmopt_kernels import dispatch, tuning
from llmopt_kernels.dispatch import uses_triton
from llmopt_kernels.tuning import launch_config, read_tuned, tuned_file, write_tuned

DEFAULT = {"BLOCK": 64}


def test_a_file_is_named_after_the_gpu():
    assert tuned_file("NVIDIA H100 80GB HBM3").name == "nvidia-h100-80gb-hbm3.json"


def test_what_is_written_is_read_and_a_missing_file_is_empty(tmp_path):
    table = {"wna16": {"t16_k4096": {"BLOCK": 128, "num_warps": 8}}}
    write_tuned(tmp_path / "gpu.json", table)
    assert read_tuned(tmp_path / "gpu.json") == table
    assert read_tuned(tmp_path / "none.json") == {}


def test_a_file_with_anything_but_integers_is_broken(tmp_path):
    write_tuned(tmp_path / "gpu.json", {"wna16": {"all": {"BLOCK": 1.5}}})
    with pytest.raises(AssertionError, match="integers only"):
        read_tuned(tmp_path / "gpu.json")


def test_every_committed_file_can_be_read():
    for path in tuned_file("any").parent.glob("*.json"):
        assert read_tuned(path) != {}


def test_the_current_gpu_decides_and_the_default_stands_in(monkeypatch, tmp_path):
    tuned = {"BLOCK": 256}
    write_tuned(tmp_path / "gpu-1.json", {"kernel": {"small": tuned}})
    monkeypatch.setattr(tuning, "_FOLDER", tmp_path)
    monkeypatch.setattr(tuning, "_has_gpu", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: f"GPU {device}")
    tuning._table_of.cache_clear()
    try:
        monkeypatch.setattr(torch.cuda, "current_device", lambda: 1)
        assert launch_config("kernel", "small", DEFAULT) == tuned
        assert launch_config("kernel", "large", DEFAULT) == DEFAULT
        assert launch_config("other", "small", DEFAULT) == DEFAULT
        monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
        assert launch_config("kernel", "small", DEFAULT) == DEFAULT
    finally:
        tuning._table_of.cache_clear()


class OnGpu:
    is_cuda = True


@pytest.mark.parametrize(("value", "enabled"), [(None, True), ("0", False), ("1", True)])
def test_triton_can_be_turned_off(monkeypatch, value, enabled):
    pytest.importorskip("triton")
    if value is None:
        monkeypatch.delenv("LLMOPT_TRITON", raising=False)
    else:
        monkeypatch.setenv("LLMOPT_TRITON", value)
    dispatch._is_enabled.cache_clear()
    try:
        assert uses_triton(OnGpu()) is enabled
        assert not uses_triton(torch.zeros(1))
    finally:
        dispatch._is_enabled.cache_clear()


def test_importing_the_kernels_imports_no_triton_and_touches_no_gpu():
    code = (
        "import importlib, pkgutil, sys, torch, llmopt_kernels as k\n"
        "light = {'dispatch', 'tuning'}\n"
        "for m in pkgutil.iter_modules(k.__path__):\n"
        "    if m.ispkg or m.name in light: importlib.import_module(f'llmopt_kernels.{m.name}')\n"
        "sys.exit('triton' in sys.modules or torch.cuda.is_initialized())"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
