"""What is found of an environment."""

import dataclasses
import json
import sys
from pathlib import Path

import pytest

from llmopt.environment.installation import (
    MARKER,
    directory_of,
    find_installation,
    package_version,
    process_variables,
    python_in,
    require_python,
)
from llmopt.errors import BackendError


def make(environment, **changes) -> Path:
    directory = directory_of(environment)
    python_in(directory).parent.mkdir(parents=True)
    python_in(directory).write_text("#!/bin/sh\n")
    python_in(directory).chmod(0o755)
    marker = {"fingerprint": environment.fingerprint, "packages": {"stubbed": "1.2"}, **changes}
    (directory / MARKER).write_text(json.dumps(marker))
    return directory


def test_absent(stubbed, cache):
    installation = find_installation(stubbed)
    assert (installation.state, installation.python) == ("absent", None)
    assert installation.directory == cache / "environments" / "stubbed.one"
    with pytest.raises(BackendError, match=r"`llmopt backend install stubbed\.one` \(about 1 min"):
        require_python(stubbed)


def test_installed(stubbed):
    directory = make(stubbed)
    installation = find_installation(stubbed)
    assert installation.state == "installed"
    assert require_python(stubbed) == python_in(directory)
    assert package_version(installation) == "1.2"


@pytest.mark.parametrize("marker", ["", "{", "[]", '{"fingerprint": 1}', '{"packages": {}}'])
def test_without_a_whole_marker_it_is_half_made(stubbed, marker):
    directory = make(stubbed)
    (directory / MARKER).write_text(marker)
    assert find_installation(stubbed).state == "incomplete"
    with pytest.raises(BackendError, match="half made"):
        require_python(stubbed)


def test_without_its_python_it_is_half_made(stubbed):
    python_in(make(stubbed)).unlink()
    assert find_installation(stubbed).state == "incomplete"


def test_other_requirements_make_it_outdated(stubbed):
    make(stubbed)
    newer = dataclasses.replace(stubbed, requirements=("stubbed==1.3",))
    assert find_installation(newer).state == "outdated"
    with pytest.raises(BackendError, match="another version of its requirements"):
        require_python(newer)


def test_a_note_or_a_variable_does_not_make_it_outdated(stubbed):
    make(stubbed)
    changed = dataclasses.replace(stubbed, note="new", variables=(), minutes=5)
    assert find_installation(changed).state == "installed"


def test_the_override_comes_first_and_its_version_is_asked(stubbed, monkeypatch):
    make(stubbed)
    monkeypatch.setenv("LLMOPT_ENVIRONMENT_STUBBED_ONE", sys.executable)
    installation = find_installation(stubbed)
    assert (installation.state, installation.python) == ("external", Path(sys.executable))
    assert package_version(installation) is None
    rich = dataclasses.replace(
        installation, environment=dataclasses.replace(stubbed, package="rich")
    )
    assert package_version(rich)


def test_an_override_that_is_no_python(stubbed, monkeypatch, tmp_path):
    monkeypatch.setenv("LLMOPT_ENVIRONMENT_STUBBED_ONE", str(tmp_path))
    assert find_installation(stubbed).state == "broken"
    with pytest.raises(BackendError, match="LLMOPT_ENVIRONMENT_STUBBED_ONE names"):
        require_python(stubbed)


def test_what_it_needs_is_said(stubbed):
    demanding = dataclasses.replace(stubbed, needs_compiler=True, needs_cuda=True)
    with pytest.raises(BackendError, match=r"a C\+\+ compiler and an NVIDIA GPU"):
        require_python(demanding)


def test_our_own_python_does_not_leak_into_it(stubbed, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", "/ours")
    monkeypatch.setenv("VIRTUAL_ENV", "/ours")
    variables = process_variables(stubbed)
    assert "PYTHONPATH" not in variables
    assert "VIRTUAL_ENV" not in variables
    assert variables["STUB_VARIABLE"] == "2"
    monkeypatch.setenv("STUB_VARIABLE", "7")
    assert process_variables(stubbed)["STUB_VARIABLE"] == "7"
