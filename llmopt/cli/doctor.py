"""`llmopt doctor`."""

from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from llmopt.environment.environment import Environment
    from llmopt.hardware.doctor import Finding


def doctor(
    json: Annotated[bool, typer.Option("--json", help="Print the findings as JSON.")] = False,
) -> None:
    """Show what is usable on this machine, and the command that adds what is not.

    Examples:

        llmopt doctor

        llmopt doctor --json
    """
    from llmopt.cli.output import print_json
    from llmopt.hardware.doctor import diagnose

    findings = [*diagnose(), *_abilities(), *_engines()]
    if json:
        print_json(findings)
        return
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("", "part", "what was found", "to add it"):
        table.add_column(column, overflow="fold")
    marks = {"ok": "[green]ok[/]", "missing": "[yellow]missing[/]", "off": "[dim]off[/]"}
    for finding in findings:
        table.add_row(
            marks[finding.state],
            finding.name,
            escape(finding.detail),
            escape(finding.command or ""),
        )
    Console().print(table)


def _abilities() -> list["Finding"]:
    """What is built in."""
    from typing import get_args

    from llmopt.hardware.doctor import Finding
    from llmopt.models.architectures import ARCHITECTURES
    from llmopt.quantize.gguf_mix import MIXES
    from llmopt.quantize.options import FileFormat
    from llmopt.quantize.scheme import FIXED_METHODS, UNIFORM_METHODS

    uniform = f"{', '.join(UNIFORM_METHODS)} in 2, 3, 4 or 8 bits"
    return [
        Finding("methods", "ok", f"{uniform}; {', '.join(FIXED_METHODS)}; gguf (built in)"),
        Finding("formats", "ok", f"{', '.join(get_args(FileFormat))}; written and read"),
        Finding("gguf mixes", "ok", ", ".join(MIXES)),
        Finding("architectures", "ok", ", ".join(ARCHITECTURES)),
        Finding("runtime", "ok", "llmopt (built in)"),
    ]


def _engines() -> list["Finding"]:
    """The quantizers of others, each in an environment of its own."""
    from llmopt.environment.catalogue import ENVIRONMENTS

    return [_engine(environment) for environment in ENVIRONMENTS]


def _engine(environment: "Environment") -> "Finding":
    from llmopt.environment.installation import find_installation, package_version
    from llmopt.hardware.doctor import Finding

    name, installation = f"engine {environment.name}", find_installation(environment)
    if installation.python is None:
        command = f"llmopt backend install {environment.name}"
        return Finding(name, "off", f"{installation.state} ({environment.purpose})", command)
    version = package_version(installation) or installation.state
    return Finding(name, "ok", f"{version} in {installation.directory}")
