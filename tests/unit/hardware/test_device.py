"""Facts of the machine are read as the system gives them."""

import subprocess
from dataclasses import fields
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

import llmopt
from llmopt.hardware import device
from llmopt.hardware.device import device_facts, environment_facts
from llmopt.hardware.nvml import gpu_uuid
from llmopt.results.schema import Environment

CPUINFO = """processor\t: 0
model name\t: Test CPU 9000
flags\t\t: fpu avx2 avx512f amx_bf16 sse
power management:

processor\t: 1
model name\t: Other
"""


def git(directory: Path, *arguments: str) -> str:
    identity = ["-c", "user.name=t", "-c", "user.email=t@example.org"]
    command = ["git", "-C", str(directory), *identity, *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


def test_environment_has_the_fields_of_the_result_schema() -> None:
    facts = environment_facts("cpu")
    assert [f.name for f in fields(facts)] == [f.name for f in fields(Environment)]
    assert facts.torch == torch.__version__
    assert facts.llmopt == llmopt.__version__
    assert facts.num_threads == torch.get_num_threads()
    assert facts.device == device_facts().cpu


def test_sizes_are_plausible() -> None:
    facts = device_facts()
    assert 1 <= facts.cores <= facts.threads
    assert 0 < facts.available_memory_bytes < facts.memory_bytes


def test_the_processor_is_described_by_cpuinfo(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "cpuinfo").write_text(CPUINFO)
    monkeypatch.setattr(device, "_CPUINFO", tmp_path / "cpuinfo")
    facts = device_facts()
    assert facts.cpu == "Test CPU 9000"
    assert facts.instruction_sets == ("avx2", "avx512f", "amx_bf16")


def test_without_cpuinfo_nothing_is_guessed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(device, "_CPUINFO", tmp_path / "absent")
    facts = device_facts()
    assert facts.instruction_sets == ()
    assert facts.cpu != ""


def test_the_revision_is_the_one_of_the_checkout_that_llmopt_runs_from(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "llmopt").mkdir()
    (tmp_path / "llmopt" / "__init__.py").touch()
    monkeypatch.setattr(llmopt, "__file__", str(tmp_path / "llmopt" / "__init__.py"))
    git(tmp_path, "init", "-q")
    assert environment_facts("cpu").git_sha is None  # no commit yet
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "-qm", "first")
    clean = environment_facts("cpu")
    assert (clean.git_sha, clean.git_dirty) == (git(tmp_path, "rev-parse", "HEAD"), False)
    (tmp_path / "llmopt" / "new.py").touch()
    assert environment_facts("cpu").git_dirty is True


def test_an_installed_copy_does_not_take_over_the_commit_around_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = tmp_path / "venv" / "site-packages" / "llmopt"
    package.mkdir(parents=True)
    (package / "__init__.py").touch()
    git(tmp_path, "init", "-q")
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "-qm", "somebody else's")
    monkeypatch.setattr(llmopt, "__file__", str(package / "__init__.py"))
    facts = environment_facts("cpu")
    assert (facts.git_sha, facts.git_dirty) == (None, None)


def test_the_accelerator_is_the_one_that_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def properties(device: str) -> SimpleNamespace:
        index = torch.device(device).index or 0
        return SimpleNamespace(
            name=f"GPU {index}", total_memory=100 + index, major=9, minor=0, uuid=f"id-{index}"
        )

    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.get_device_properties", properties)
    for name, index in (("cuda", 0), ("cuda:0", 0), ("cuda:1", 1)):
        facts = environment_facts(name)
        assert (facts.device, facts.memory_bytes) == (f"GPU {index}", 100 + index)
        assert gpu_uuid(name) == f"GPU-id-{index}"
    assert environment_facts("cpu").memory_bytes > 1000
    gpu = device_facts().gpu
    assert gpu is not None
    assert gpu.name == "GPU 0"


@pytest.mark.gpu
def test_on_cuda_the_device_is_the_accelerator() -> None:
    facts = environment_facts("cuda")
    assert facts.device == torch.cuda.get_device_name(0)
