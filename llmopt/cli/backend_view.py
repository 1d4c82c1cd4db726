"""What `llmopt backend list` shows: the runtimes that serve, and the environments."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from llmopt.backends.availability import BackendState
    from llmopt.environment.installation import Installation


def show_backends(console: "Console", states: "Sequence[BackendState]") -> None:
    """Print a row for each runtime: state, version, what it loads here, how to get it."""
    from rich.markup import escape

    table = _table("backend", "state", "version", "what it loads on this machine", "how to get it")
    for found in states:
        table.add_row(
            found.kind.name,
            f"[{'green' if found.state == 'installed' else 'dim'}]{found.state}[/]",
            escape(found.version or ""),
            escape(_formats(found.formats)),
            escape(found.how_to_get),
        )
    console.print(table)


def show_environments(console: "Console", found: "Sequence[Installation]") -> None:
    """Print a row for each environment: what it is for, and what making it takes."""
    from rich.markup import escape

    table = _table("environment", "state", "version", "what it is for", "what it takes")
    for installation in found:
        facts = environment_facts(installation)
        style = "green" if installation.python is not None else "dim"
        table.add_row(
            str(facts["name"]),
            f"[{style}]{facts['state']}[/]",
            escape(str(facts["version"])),
            escape(str(facts["purpose"])),
            escape(str(facts["needs"])),
        )
    console.print(table)


def backend_facts(found: "BackendState") -> dict[str, object]:
    """One runtime as JSON values."""
    return {
        "name": found.kind.name,
        "title": found.kind.title,
        "runs": found.kind.how,
        "state": found.state,
        "version": found.version,
        "formats": list(found.formats),
        "environment": found.environment,
        "how_to_get": found.how_to_get,
        "override": found.kind.program_variable if found.kind.how == "server" else None,
    }


def environment_facts(installation: "Installation") -> dict[str, object]:
    """One environment as JSON values."""
    from llmopt.environment.installation import package_version

    environment = installation.environment
    needs = [f"{environment.disk_gb:g} GB", f"{environment.minutes} min"]
    needs += ["C++ compiler"] * environment.needs_compiler
    needs += ["NVIDIA GPU"] * environment.needs_cuda
    needs += [environment.note] * bool(environment.note)
    usable = installation.python is not None
    return {
        "name": environment.name,
        "state": installation.state,
        "version": package_version(installation) if usable else "",
        "pinned": environment.pinned,
        "purpose": environment.purpose,
        "needs": ", ".join(needs),
        "directory": installation.directory,
        "override": environment.override_variable,
    }


def _formats(labels: "Sequence[str]") -> str:
    from llmopt.backends.formats import LABELS

    if len(labels) == len(LABELS) - 1:  # all but random weights
        return "all formats"
    return ", ".join(labels) or "nothing: it needs an NVIDIA GPU"


def _table(*columns: str) -> "Table":
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in columns:
        table.add_column(column, overflow="fold")
    return table
