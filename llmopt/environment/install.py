"""Making and removing an environment.

Knows pip and venv; knows nothing of what is done with the environment. The law: the marker file is
written last, so whatever is interrupted is seen to be unfinished and is made again from nothing.
"""

import fcntl
import json
import os
import shutil
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from llmopt.environment.cuda import has_nvidia_driver
from llmopt.environment.environment import Environment
from llmopt.environment.installation import (
    MARKER,
    Installation,
    directory_of,
    environments_directory,
    find_installation,
    process_variables,
    python_in,
)
from llmopt.environment.pip_failure import explain_failure
from llmopt.environment.process import LineCallback, follow_process
from llmopt.errors import BackendError, OutputError, UsageError

_PIP = ("-m", "pip", "--disable-pip-version-check", "--no-input")
_COMPILERS = ("c++", "g++", "clang++")
_TAIL_LINES = 200  # of a failed step, in which its reason is looked for
# The metadata of a distribution (core metadata specification of packaging.python.org), and no more.
_STAND_IN = """
import pathlib, sys, sysconfig
name, version = sys.argv[1:]
folder = pathlib.Path(sysconfig.get_path("purelib"), f"{name}-{version}.dist-info")
folder.mkdir(exist_ok=True)
(folder / "METADATA").write_text(f"Metadata-Version: 2.1\\nName: {name}\\nVersion: {version}\\n")
"""
# The import is what lets some packages finish: they link their shared libraries then.
_LINK_PROGRAM = """
import importlib, pathlib, sys
module, program, link = sys.argv[1:]
package = pathlib.Path(importlib.import_module(module).__file__).parent
pathlib.Path(link).symlink_to(package / program)
"""


@dataclass(frozen=True, slots=True)
class InstallOptions:
    """How an environment is made.

    python: the interpreter that the environment is made of; this one if None
    torch_index: URL of a package index to take torch from; pip's own setting if None
    """

    python: Path | None = None
    torch_index: str | None = None


def install_environment(
    environment: Environment, options: InstallOptions, on_line: LineCallback
) -> Installation:
    """Make an environment, unless it is there already, and return it.

    `on_line` gets what venv and pip print. Takes minutes and needs a package index; an interrupted
    or failed call leaves a directory that counts as half made, which the next call clears away.
    Raises `UsageError` when the override variable is set, `OutputError` when the disk is too small
    or cannot be written, and `BackendError` for whatever fails.
    """
    found = find_installation(environment)
    if found.state in ("external", "broken"):
        raise UsageError(
            f"{environment.override_variable} is set, so {environment.name} would not be used",
            "Unset it first.",
        )
    with _exclusive(environment):
        found = find_installation(environment)
        if found.state == "installed":
            return found
        _check_machine(environment, options)
        shutil.rmtree(directory_of(environment), ignore_errors=True)
        _make(environment, options, on_line)
    return find_installation(environment)


def remove_environment(environment: Environment) -> bool:
    """Remove an environment that was made here; returns whether there was one."""
    directory = directory_of(environment)
    with _exclusive(environment):
        if not directory.exists():
            return False
        _log_of(environment).unlink(missing_ok=True)
        (directory / MARKER).unlink(missing_ok=True)  # if interrupted: half made, never half there
        try:
            shutil.rmtree(directory)
        except OSError as error:
            raise OutputError(
                f"{directory} cannot be removed ({error.strerror})", "Remove it by hand."
            ) from error
    return True


def torch_advice(options: InstallOptions) -> str | None:
    """What a user should know of the torch that will be installed, if anything."""
    chosen = options.torch_index or os.environ.get("PIP_INDEX_URL")
    if chosen is not None or has_nvidia_driver():
        return None
    return (
        "no NVIDIA driver was found, and the usual torch wheel for Linux brings CUDA libraries of "
        "several GB: --torch-index URL (or PIP_INDEX_URL) takes torch from an index of CPU wheels"
    )


def _make(environment: Environment, options: InstallOptions, on_line: LineCallback) -> None:
    started = time.time()
    directory = directory_of(environment)
    log = _log_of(environment)
    log.write_bytes(b"")
    for step, command in _steps(environment, options, directory):
        on_line(f"{environment.name}: {step}")
        _run_step(environment, step, command, log, on_line)
    listing = directory / "packages.json"
    python = str(python_in(directory))
    code = (
        "import importlib.metadata as m, json, sys; json.dump({d.name.lower().replace('_', '-'): "
        "d.version for d in m.distributions()}, open(sys.argv[1], 'w'), sort_keys=True)"
    )
    _run_step(environment, "listing", (python, "-c", code, str(listing)), log, on_line)
    marker = {
        "name": environment.name,
        "fingerprint": environment.fingerprint,
        "requirements": environment.pinned,
        "packages": json.loads(listing.read_text()),
        "made_at_unix_s": round(started),
        "seconds": round(time.time() - started, 1),
    }
    unfinished = directory / f"{MARKER}.new"
    unfinished.write_text(json.dumps(marker, indent=2) + "\n", encoding="utf-8")
    unfinished.rename(directory / MARKER)


def _log_of(environment: Environment) -> Path:
    return environments_directory() / f"{environment.name}.log"


def _steps(
    environment: Environment, options: InstallOptions, directory: Path
) -> Iterator[tuple[str, Sequence[str]]]:
    """What is run, one after the other, each with a name to show."""
    base = options.python or Path(sys.executable)
    yield "making the virtual environment", (str(base), "-m", "venv", str(directory))
    pip = (str(python_in(directory)), *_PIP, "install", "--progress-bar", "off")
    torch = () if environment.torch is None else (environment.torch,)
    if torch:
        index = () if options.torch_index is None else ("--index-url", options.torch_index)
        yield f"installing {environment.torch}", (*pip, *index, *torch)
    # torch is named again, so that nothing that depends on it can exchange it
    yield f"installing {environment.package}", (*pip, *torch, *environment.requirements)
    if environment.bare_requirements:
        bare = environment.bare_requirements
        yield f"installing {', '.join(bare)}", (*pip, "--no-deps", *bare)
    python = str(python_in(directory))
    if environment.removed:
        removed = environment.removed
        yield f"removing {', '.join(removed)}", (python, *_PIP, "uninstall", "--yes", *removed)
    for name, version in environment.stand_ins:
        yield f"standing in for {name}", (python, "-c", _STAND_IN, name, version)
    if environment.program is not None:
        program = directory / "bin" / environment.program
        if environment.packaged_program is not None:
            link = (environment.module, environment.packaged_program, str(program))
            yield f"linking {environment.program}", (python, "-c", _LINK_PROGRAM, *link)
        yield f"checking `{environment.program}`", (str(program), "--version")
    else:
        check = f"import {environment.module}"
        yield f"checking `{check}`", (python, "-c", check)


def _run_step(
    environment: Environment,
    step: str,
    command: Sequence[str],
    log: Path,
    on_line: LineCallback,
) -> None:
    lines: list[str] = []

    def take(line: str) -> None:
        lines.append(line)
        del lines[:-_TAIL_LINES]
        on_line(line)

    try:
        status = follow_process(
            command, variables=process_variables(environment), log=log, on_line=take
        )
    except OSError as error:
        raise BackendError(
            f"{environment.name} was not installed: {command[0]} cannot be started "
            f"({error.strerror})",
            "Give another interpreter with --python.",
        ) from error
    if status != 0:
        raise explain_failure(environment.name, step, lines, str(log))


def _check_machine(environment: Environment, options: InstallOptions) -> None:
    """Refuse what cannot succeed before anything is downloaded."""
    name = environment.name
    if environment.needs_cuda and not has_nvidia_driver():
        raise BackendError(
            f"{name} works on NVIDIA GPUs only, and this machine has no NVIDIA driver",
            "Use it on a machine with a GPU, or choose another backend.",
        )
    if environment.needs_compiler and not _compiler():
        raise BackendError(
            f"{name} is compiled when it is installed, and there is no C++ compiler",
            "Install one; on Debian: `apt-get install build-essential`.",
        )
    newest = environment.newest_python
    if newest is not None and options.python is None and sys.version_info[:2] > newest:
        wanted = ".".join(map(str, newest))
        raise BackendError(
            f"the packages of {name} end at Python {wanted}, and this is "
            f"{sys.version_info[0]}.{sys.version_info[1]}",
            f"Name an older interpreter with --python, such as python{wanted}.",
        )
    free_gb = shutil.disk_usage(environments_directory()).free / 1e9
    if free_gb < environment.disk_gb:
        raise OutputError(
            f"{name} needs {environment.disk_gb:g} GB in {environments_directory()}, and "
            f"{free_gb:.1f} GB are free",
            "Free some space, or set LLMOPT_CACHE to a directory on another disk.",
        )


def _compiler() -> str | None:
    names = (os.environ.get("CXX"), *_COMPILERS)
    return next((found for name in names if name and (found := shutil.which(name))), None)


@contextmanager
def _exclusive(environment: Environment) -> Iterator[None]:
    """Hold the environment's lock, which also ends with this process."""
    lock = environments_directory() / f"{environment.name}.lock"
    try:
        lock.parent.mkdir(parents=True, exist_ok=True)
        stream = lock.open("w")
    except OSError as error:
        raise OutputError(
            f"{lock.parent} cannot be written ({error.strerror})",
            "Set LLMOPT_CACHE to a directory that can.",
        ) from error
    with stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise BackendError(
                f"another llmopt is installing or removing {environment.name}",
                "Wait until it is done.",
            ) from error
        yield
