"""Whether an environment is there, and which python runs in it.

Knows nothing of how environments are made. The law: one that was not finished, or was made from
another requirement set, is never used.
"""

import json
import os
import subprocess
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from llmopt.environment.environment import Environment
from llmopt.errors import BackendError
from llmopt.hardware.cache import cache_directory

State = Literal["installed", "absent", "incomplete", "outdated", "external", "broken"]

MARKER = "llmopt-environment.json"
_QUERY_S = 60.0
_OF_OUR_PYTHON = ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV", "__PYVENV_LAUNCHER__")


@dataclass(frozen=True, slots=True)
class Installation:
    """What was found of one environment.

    state: "installed"; "absent"; "incomplete" (its making was interrupted); "outdated" (made from
        another requirement set); "external" (named by the override variable); "broken" (the
        override variable names no python)
    python: its interpreter, if there is one that may be used
    packages: versions of the distributions in it, by name in lower case; empty unless it is ours
    """

    environment: Environment
    state: State
    directory: Path
    python: Path | None = None
    packages: dict[str, str] = field(default_factory=dict)


def environments_directory() -> Path:
    """Where environments are kept; not created here."""
    return cache_directory() / "environments"


def directory_of(environment: Environment) -> Path:
    """The place of one environment."""
    return environments_directory() / environment.name


def python_in(directory: Path) -> Path:
    """The interpreter of the virtual environment in a directory."""
    return directory / "bin" / "python"


def find_installation(environment: Environment) -> Installation:
    """Look for an environment: first the override variable, then the cache. Starts nothing."""
    directory = directory_of(environment)
    if override := os.environ.get(environment.override_variable):
        python = Path(override).expanduser().absolute()
        if not os.access(python, os.X_OK) or python.is_dir():
            return Installation(environment, "broken", python)
        return Installation(environment, "external", python.parent.parent, python)
    if not directory.exists():
        return Installation(environment, "absent", directory)
    marker = read_marker(directory)
    if marker is None or not os.access(python_in(directory), os.X_OK):
        return Installation(environment, "incomplete", directory)
    if marker["fingerprint"] != environment.fingerprint:
        return Installation(environment, "outdated", directory)
    python, packages = python_in(directory), marker["packages"]
    return Installation(environment, "installed", directory, python, packages)


def require_python(environment: Environment) -> Path:
    """Return the environment's interpreter; `BackendError` says which command makes it."""
    installation = find_installation(environment)
    if installation.python is not None:
        return installation.python
    name = environment.name
    if installation.state == "broken":
        raise BackendError(
            f"{environment.override_variable} names {installation.directory}, which is no python",
            f"Correct it, or unset it and run `llmopt backend install {name}`.",
        )
    reason = {
        "absent": "is not installed",
        "incomplete": "is half made, because its installation was interrupted",
        "outdated": "was made from another version of its requirements",
    }[installation.state]
    raise BackendError(
        f"the {name} environment {reason}",
        f"Run `llmopt backend install {name}` (about {environment.minutes} minutes and "
        f"{environment.disk_gb:g} GB{_needs(environment)}).",
    )


def process_variables(environment: Environment) -> dict[str, str]:
    """The variables in which an environment's python runs: ours, less what is about our python,
    and the environment's own where the user has set nothing else.
    """
    inherited = {name: value for name, value in os.environ.items() if name not in _OF_OUR_PYTHON}
    return {**dict(environment.variables), **inherited, "PYTHONUNBUFFERED": "1"}


def package_version(installation: Installation) -> str | None:
    """Version of the package that the environment is for; asks an external one's python."""
    package = installation.environment.package
    if installation.state != "external":
        return installation.packages.get(package.lower())
    query = f"import importlib.metadata as m; print(m.version({package!r}))"
    try:
        done = subprocess.run(
            [str(installation.python), "-c", query],
            capture_output=True,
            text=True,
            check=False,
            timeout=_QUERY_S,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() or None if done.returncode == 0 else None


def read_marker(directory: Path) -> dict[str, Any] | None:
    """What a finished installation left in its directory, or None."""
    try:
        marker = json.loads((directory / MARKER).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    if not isinstance(marker, dict) or not isinstance(marker.get("packages"), dict):
        return None
    return marker if isinstance(marker.get("fingerprint"), str) else None


def _needs(environment: Environment) -> str:
    needs = ["a C++ compiler"] * environment.needs_compiler
    needs += ["an NVIDIA GPU"] * environment.needs_cuda
    return f"; needs {' and '.join(needs)}" if needs else ""
