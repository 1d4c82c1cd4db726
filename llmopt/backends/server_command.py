"""Which program a backend is, where it is on this machine, and its command as results show it.

Starts nothing. The laws: a backend that is not there is a BackendError that says which command
installs it; what is shown of a command holds no key and no directory of whoever ran it.
"""

import os
import re
import shlex
import shutil
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from llmopt.backends.catalogue import BackendKind
from llmopt.backends.formats import CheckpointFacts, environment_for
from llmopt.backends.profiles.launch import LaunchCommand
from llmopt.backends.profiles.registry import find_profile
from llmopt.environment.catalogue import find_environment
from llmopt.environment.installation import (
    Installation,
    find_installation,
    process_variables,
    require_python,
)
from llmopt.errors import BackendError

HIDDEN = "***"
_DISTRIBUTION = re.compile(r"[A-Za-z0-9._-]+")  # the name that a requirement begins with
_SECRET = re.compile(r"key|secret|password|passwd|credential|auth|(^|[-_])token$", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Program:
    """What is run, and in which environment variables.

    package: the distribution that it came in and its version, of one that llmopt installed
    """

    path: str
    variables: Mapping[str, str]
    package: str | None = None


def worker_python(kind: BackendKind, facts: CheckpointFacts | None) -> Program:
    """The Python that a worker runs in. Raises BackendError when its environment is not there."""
    name = environment_for(kind, facts)
    if name is None:
        return Program(sys.executable, dict(os.environ))
    environment = find_environment(name)
    return Program(str(require_python(environment)), process_variables(environment))


def server_program(kind: BackendKind) -> Program:
    """The program of a server: named by its variable, in its environment, or on PATH.

    Raises BackendError when it is nowhere, with what to do.
    """
    wanted = find_profile(kind.name).program
    if wanted is None or kind.how != "server":
        raise BackendError(
            f"{kind.name} cannot be started by llmopt",
            f"Start it yourself (`llmopt backend install {kind.name}` says how), and name it with "
            "--url or `url:`.",
        )
    if named := os.environ.get(kind.program_variable):
        path = shutil.which(str(Path(named).expanduser()))
        if path is None:
            raise BackendError(
                f"{kind.program_variable} names {named}, which is no program", "Correct it."
            )
        return Program(path, dict(os.environ))
    on_path = None if wanted == "python" else shutil.which(wanted)
    name = environment_for(kind)
    installation = None if name is None else find_installation(find_environment(name))
    if on_path is not None and (installation is None or installation.python is None):
        return Program(on_path, dict(os.environ))
    if installation is None:
        raise BackendError(
            f"there is no program {wanted} on PATH",
            f"Set {kind.program_variable} to it, or see `llmopt backend install {kind.name}`.",
        )
    environment = installation.environment
    python = require_python(environment)
    program = python if wanted == "python" else python.parent / wanted
    if not os.access(program, os.X_OK):
        raise BackendError(
            f"there is no program {wanted} in {program.parent}",
            f"Set {kind.program_variable} to it, or run `llmopt backend install {kind.name}`.",
        )
    return Program(str(program), process_variables(environment), _package(installation))


def _package(installation: Installation) -> str | None:
    """The first distribution that the environment was made for."""
    found = _DISTRIBUTION.match(installation.environment.requirements[0])
    version = installation.packages.get(found[0].lower()) if found else None
    return None if found is None or version is None else f"{found[0]} {version}"


def shown_command(command: LaunchCommand, checkpoint: Path) -> str:
    """The command as a shell line: program and checkpoint by name, secrets hidden."""
    arguments = [Path(command.arguments[0]).name]
    is_secret = False
    for argument in command.arguments[1:]:
        name, equals, _ = argument.partition("=")
        if is_secret:
            argument = HIDDEN
        elif name.startswith("-") and equals and _SECRET.search(name):
            argument = f"{name}={HIDDEN}"
        is_secret = name.startswith("-") and not equals and bool(_SECRET.search(name))
        arguments.append(argument.replace(str(checkpoint), checkpoint.name))
    variables = {
        name: HIDDEN if _SECRET.search(name) else value
        for name, value in command.environment.items()
    }
    return LaunchCommand(tuple(arguments), variables).shell_line


def shown_line(arguments: tuple[str, ...]) -> str:
    """Arguments as a shell line, with files by their names."""
    return shlex.join(Path(part).name if part.startswith("/") else part for part in arguments)
