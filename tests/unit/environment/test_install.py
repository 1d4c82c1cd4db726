"""Making and removing environments, with a python that only pretends."""

import dataclasses
import fcntl
import importlib.metadata
import json
import shutil
import subprocess
import sys

import pytest

from llmopt.environment.install import (
    InstallOptions,
    install_environment,
    remove_environment,
    torch_advice,
)
from llmopt.environment.installation import (
    MARKER,
    directory_of,
    find_installation,
    package_version,
    read_marker,
)
from llmopt.errors import BackendError, OutputError, UsageError

INDEX = "https://index.example/cpu"


@pytest.fixture
def install(stub_python):
    def run(environment, *, index=None, on_line=lambda line: None):
        return install_environment(environment, InstallOptions(stub_python, index), on_line)

    return run


@pytest.fixture
def calls(tmp_path):
    return lambda: [json.loads(line) for line in (tmp_path / "calls").read_text().splitlines()]


def test_the_steps_and_what_they_leave(stubbed, install, calls):
    lines: list[str] = []
    installation = install(stubbed, index=INDEX, on_line=lines.append)
    assert installation.state == "installed"
    assert package_version(installation) == "1.2"
    directory = directory_of(stubbed)
    venv, torch, main, bare, check, listing = calls()
    assert venv == ["-m", "venv", str(directory)]
    assert torch[-3:] == ["--index-url", INDEX, "torch==2.13.0"]
    assert main[-3:] == ["torch==2.13.0", "stubbed==1.2", "other==3.0"]
    assert "--index-url" not in main
    assert bare[-2:] == ["--no-deps", "bare==0.1"]
    assert check == ["-c", "import stubbed"]
    assert listing[-1] == str(directory / "packages.json")
    assert "running -m venv" in "\n".join(lines)
    marker = read_marker(directory)
    assert marker is not None
    assert marker["requirements"] == list(stubbed.pinned)


def test_what_does_not_work_goes_and_what_is_asked_for_is_stood_in_for(stubbed, install, calls):
    changed = dataclasses.replace(
        stubbed, removed=("torchvision", "triton"), stand_ins=(("vllm", "0.32.0+cpu"),)
    )
    install(changed)
    _, _, _, bare, removing, standing_in, check, _ = calls()
    assert bare[-1] == "bare==0.1"
    assert removing[-4:] == ["uninstall", "--yes", "torchvision", "triton"]
    assert standing_in[0] == "-c"
    assert standing_in[2:] == ["vllm", "0.32.0+cpu"]
    assert check == ["-c", "import stubbed"]


def test_a_stand_in_is_a_distribution_by_name_and_version(tmp_path):
    from llmopt.environment.install import _STAND_IN

    patch = f"import sysconfig; sysconfig.get_path = lambda name: {str(tmp_path)!r}\n"
    command = [sys.executable, "-c", patch + _STAND_IN, "vllm", "0.32.0+cpu"]
    subprocess.run(command, check=True)
    (found,) = importlib.metadata.distributions(path=[str(tmp_path)])
    assert (found.name, found.version) == ("vllm", "0.32.0+cpu")


def test_a_program_is_run_in_place_of_the_import(stubbed, install, calls, tmp_path):
    changed = dataclasses.replace(stubbed, program="python")  # the only one the stub makes
    install(changed)
    assert calls()[-2] == ["--version"]
    missing = dataclasses.replace(stubbed, name="other", program="server")
    with pytest.raises(BackendError, match="server cannot be started"):
        install(missing)


def test_a_program_inside_a_package_is_linked_after_the_package_is_imported(
    stubbed, install, calls, tmp_path
):
    changed = dataclasses.replace(stubbed, program="python", packaged_program="bin/server")
    install(changed)
    program = directory_of(changed) / "bin" / "python"
    linking, check, _ = calls()[-3:]
    assert linking[2:] == ["stubbed", "bin/server", str(program)]
    assert check == ["--version"]

    package = tmp_path / "packaged"
    package.mkdir()
    (package / "__init__.py").write_text("import pathlib; pathlib.Path('imported').touch()")
    link = tmp_path / "server"
    command = [sys.executable, *linking[:2], "packaged", "bin/server", str(link)]
    subprocess.run(command, check=True, cwd=tmp_path)
    assert link.readlink() == package / "bin" / "server"
    assert (tmp_path / "imported").exists()


def test_without_an_index_pip_decides(stubbed, install, calls):
    install(stubbed)
    assert not any("--index-url" in call for call in calls())


def test_what_is_there_is_not_made_again(stubbed, install, calls):
    install(stubbed)
    before = calls()
    assert install(stubbed).state == "installed"
    assert calls() == before


def test_another_requirement_set_replaces_it(stubbed, install):
    install(stubbed)
    stale = directory_of(stubbed) / "stale"
    stale.touch()
    newer = dataclasses.replace(stubbed, requirements=("stubbed==1.3",))
    assert install(newer).state == "installed"
    assert not stale.exists()


def test_an_interrupted_one_is_half_made_and_made_anew(stubbed, install):
    def interrupt(line: str) -> None:
        if "other==3.0" in line or "--no-deps" in line or "bare" in line:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        install(stubbed, on_line=interrupt)
    assert find_installation(stubbed).state == "incomplete"
    left = directory_of(stubbed) / "left"
    left.touch()
    assert install(stubbed).state == "installed"
    assert not left.exists()


@pytest.mark.parametrize(
    ("text", "cause"),
    [
        ("[Errno 28] No space left on device", "the disk filled up"),
        ("NewConnectionError: Failed to establish a new connection", "cannot be reached"),
        ("CMake Error: CMAKE_CXX_COMPILER not set", "could not be compiled"),
        ("error: subprocess-exited-with-error", "could not be built"),
        ("ERROR: No matching distribution found for other==3.0", "has no such version"),
        ("ERROR: ResolutionImpossible: for help visit", "contradict each other"),
        ("ERROR: something new", r"failed \(something new\)"),
        ("ImportError: libfoo.so: cannot open", r"failed \(libfoo.so: cannot open\)"),
        ("only words", r"failed \(only words\)"),
    ],
)
def test_a_failure_says_why_and_where_the_log_is(stubbed, install, cache, monkeypatch, text, cause):
    monkeypatch.setenv("FAIL_AT", "other==3.0")
    monkeypatch.setenv("FAIL_TEXT", text)
    with pytest.raises(BackendError, match=cause) as error:
        install(stubbed)
    log = cache / "environments" / "stubbed.one.log"
    assert str(log) in str(error.value)
    assert text in log.read_text()
    assert find_installation(stubbed).state == "incomplete"


def test_a_package_that_does_not_import_is_not_installed(stubbed, install, monkeypatch):
    monkeypatch.setenv("FAIL_AT", "import stubbed")
    monkeypatch.setenv("FAIL_TEXT", "OSError: wrong ELF class")
    with pytest.raises(BackendError, match=r"`import stubbed` failed \(wrong ELF class\)"):
        install(stubbed)
    assert not (directory_of(stubbed) / MARKER).exists()


def test_no_python(stubbed, tmp_path):
    options = InstallOptions(tmp_path / "nothing")
    with pytest.raises(BackendError, match="cannot be started"):
        install_environment(stubbed, options, lambda line: None)


def test_an_environment_of_the_user_is_left_alone(stubbed, install, monkeypatch):
    monkeypatch.setenv("LLMOPT_ENVIRONMENT_STUBBED_ONE", sys.executable)
    with pytest.raises(UsageError, match="LLMOPT_ENVIRONMENT_STUBBED_ONE is set"):
        install(stubbed)


def test_a_gpu_is_asked_for_first(stubbed, install, monkeypatch):
    monkeypatch.setattr("llmopt.environment.install.has_nvidia_driver", lambda: False)
    with pytest.raises(BackendError, match="NVIDIA GPUs only"):
        install(dataclasses.replace(stubbed, needs_cuda=True))
    assert find_installation(stubbed).state == "absent"


def test_a_compiler_is_asked_for_first(stubbed, install, monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(BackendError, match=r"no C\+\+ compiler"):
        install(dataclasses.replace(stubbed, needs_compiler=True))


def test_a_python_that_is_too_new(stubbed):
    older = dataclasses.replace(stubbed, newest_python=(3, 8))
    with pytest.raises(BackendError, match=r"end at Python 3\.8.*--python"):
        install_environment(older, InstallOptions(), lambda line: None)


def test_too_little_room(stubbed, install):
    with pytest.raises(OutputError, match=r"needs 1e\+09 GB"):
        install(dataclasses.replace(stubbed, disk_gb=1e9))


def test_two_at_once(stubbed, install, cache):
    (cache / "environments").mkdir(parents=True)
    with (cache / "environments" / "stubbed.one.lock").open("w") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        with pytest.raises(BackendError, match="another llmopt"):
            install(stubbed)


def test_a_cache_that_cannot_be_written(stubbed, install, monkeypatch, tmp_path):
    (tmp_path / "file").touch()
    monkeypatch.setenv("LLMOPT_CACHE", str(tmp_path / "file"))
    with pytest.raises(OutputError, match="LLMOPT_CACHE"):
        install(stubbed)


def test_remove(stubbed, install):
    assert not remove_environment(stubbed)
    install(stubbed)
    assert remove_environment(stubbed)
    assert find_installation(stubbed).state == "absent"


def test_advice_on_torch(monkeypatch):
    monkeypatch.setattr("llmopt.environment.install.has_nvidia_driver", lambda: False)
    assert "--torch-index" in (torch_advice(InstallOptions()) or "")
    assert torch_advice(InstallOptions(None, INDEX)) is None
    monkeypatch.setattr("llmopt.environment.install.has_nvidia_driver", lambda: True)
    assert torch_advice(InstallOptions()) is None
