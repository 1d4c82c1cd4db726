"""`llmopt backend`, in process."""

import json
import sys

import pytest
from typer.testing import CliRunner

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


def run(*arguments: str):
    return CliRunner().invoke(app, ["backend", *arguments])


def test_the_list_names_all_with_what_they_take(monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    done = run("list")
    assert done.exit_code == 0
    for environment in ENVIRONMENTS:
        assert environment.name in done.stdout
    assert "absent" in done.stdout
    assert "NVIDIA GPU" in done.stdout


def test_the_list_as_json(monkeypatch):
    monkeypatch.setenv("LLMOPT_ENVIRONMENT_LLAMA_CPP", sys.executable)
    rows = {row["name"]: row for row in json.loads(run("list", "--json").stdout)}
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


def test_unknown_names(monkeypatch):
    for command in ("install", "remove"):
        assert isinstance(run(command, "nothing").exception, UsageError)


def test_removing_what_is_not_there():
    done = run("remove", "autoawq")
    assert done.exit_code == 0
    assert "nothing to remove" in done.stdout
