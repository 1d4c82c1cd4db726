"""`llmopt backend`: the environments of other people's software."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from rich.console import Console

    from llmopt.environment.environment import Environment
    from llmopt.environment.install import InstallOptions
    from llmopt.environment.installation import Installation

app = typer.Typer(
    no_args_is_help=True,
    help="Make, list and remove the environments in which engines of others run.",
)
Name = Annotated[str, typer.Argument(help="As `llmopt backend list` shows it.")]


@app.command("install")
def install(
    name: Name,
    python: Annotated[
        Path | None, typer.Option(help="Interpreter to make it of; this one if absent.")
    ] = None,
    torch_index: Annotated[
        str | None, typer.Option(help="URL of a package index to take torch from.")
    ] = None,
) -> None:
    """Make an environment from its pinned requirements, in the cache.

    To use an environment that exists already, set LLMOPT_ENVIRONMENT_NAME (such as
    LLMOPT_ENVIRONMENT_GPTQMODEL) to its python instead. Interrupting is safe: the same command
    begins again.
    """
    from rich.console import Console

    from llmopt.environment.catalogue import find_environment
    from llmopt.environment.install import InstallOptions, torch_advice
    from llmopt.environment.installation import find_installation, package_version

    environment = find_environment(name)
    options = InstallOptions(python, torch_index)
    console = Console(stderr=True)
    if find_installation(environment).python is None:
        advice = torch_advice(options) if environment.torch else None
        for line in filter(None, (environment.note, advice)):
            _say(console, f"note: {line}")
    installation = _install(environment, options, console)
    version = package_version(installation)
    typer.echo(f"{environment.package} {version} is ready in {installation.directory}")


@app.command("list")
def show(
    json: Annotated[bool, typer.Option("--json", help="Print the table as JSON.")] = False,
) -> None:
    """Show every environment: what it is for, whether it is there, and what making it takes."""
    from llmopt.cli.output import print_json
    from llmopt.environment.catalogue import ENVIRONMENTS
    from llmopt.environment.installation import find_installation

    found = [find_installation(environment) for environment in ENVIRONMENTS]
    if json:
        print_json([_facts(installation) for installation in found])
        return
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("name", "state", "version", "what it is for", "what it takes"):
        table.add_column(column, overflow="fold")
    for installation in found:
        facts = _facts(installation)
        style = "green" if installation.python is not None else "dim"
        table.add_row(
            str(facts["name"]),
            f"[{style}]{facts['state']}[/]",
            escape(str(facts["version"])),
            escape(str(facts["purpose"])),
            escape(str(facts["needs"])),
        )
    Console().print(table)


@app.command("remove")
def remove(name: Name) -> None:
    """Remove an environment from the cache."""
    from llmopt.environment.catalogue import find_environment
    from llmopt.environment.install import remove_environment
    from llmopt.environment.installation import directory_of

    environment = find_environment(name)
    removed = remove_environment(environment)
    where = directory_of(environment)
    typer.echo(f"{where} is removed" if removed else f"{name} was not installed; nothing to remove")


def _install(
    environment: "Environment", options: "InstallOptions", console: "Console"
) -> "Installation":
    """Install; at a terminal only the steps stay, elsewhere every line of pip."""
    from rich.markup import escape

    from llmopt.environment.install import install_environment

    if not console.is_terminal:
        return install_environment(environment, options, lambda line: _say(console, line))
    with console.status("starting") as status:

        def show(line: str) -> None:
            if line.startswith(f"{environment.name}: "):
                _say(console, line)
            status.update(escape(line[: console.width - 4]))

        return install_environment(environment, options, show)


def _facts(installation: "Installation") -> dict[str, object]:
    """What `list` shows of one environment."""
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


def _say(console: "Console", line: str) -> None:
    console.print(line, style="dim", highlight=False, markup=False, soft_wrap=True)
