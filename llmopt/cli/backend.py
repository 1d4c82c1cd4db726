"""`llmopt backend`: runtimes of others, and the environments of other people's software."""

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
    help="List the runtimes that `llmopt bench --backend` serves with; make and remove the"
    " environments in which software of others runs.",
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
    checkpoint: Annotated[
        Path | None, typer.Option(help="What a container is to serve: a directory, a GGUF file.")
    ] = None,
) -> None:
    """Make what a backend or an engine of others needs from its pinned requirements, in the cache.

    Of a backend that comes as a container, the commands that start it are printed, and the exit
    code is 2. To use an environment that exists already, set LLMOPT_ENVIRONMENT_NAME (such as
    LLMOPT_ENVIRONMENT_GPTQMODEL) to its python instead; to use a server's program that exists
    already, LLMOPT_SERVER_NAME (such as LLMOPT_SERVER_LLAMA_SERVER). Interrupting is safe: the same
    command begins again.

    Examples:

        llmopt backend install vllm

        llmopt backend install gptqmodel --python python3.12
    """
    from rich.console import Console

    from llmopt.environment.install import InstallOptions, torch_advice
    from llmopt.environment.installation import find_installation, package_version

    _explain_containers(name, checkpoint)
    environment = _environment(name)
    if environment is None:
        typer.echo(f"{name} comes with llmopt; nothing to install")
        return
    options = InstallOptions(python, torch_index)
    console = Console(stderr=True)
    if find_installation(environment).python is None:
        advice = torch_advice(options) if environment.torch else None
        if environment.name != name:
            _say(console, f"note: {name} on this machine is the environment {environment.name}")
        for line in filter(None, (environment.note, advice)):
            _say(console, f"note: {line}")
    installation = _install(environment, options, console)
    version = package_version(installation)
    typer.echo(f"{environment.package} {version} is ready in {installation.directory}")


@app.command("list")
def show(
    json: Annotated[bool, typer.Option("--json", help="Print the tables as JSON.")] = False,
) -> None:
    """Show the backends (state, version, loadable formats), and every environment.

    Examples:

        llmopt backend list

        llmopt backend list --json
    """
    from llmopt.backends.availability import backend_state
    from llmopt.backends.catalogue import BACKENDS
    from llmopt.cli.backend_view import (
        backend_facts,
        environment_facts,
        show_backends,
        show_environments,
    )
    from llmopt.cli.output import print_json
    from llmopt.environment.catalogue import ENVIRONMENTS
    from llmopt.environment.installation import find_installation

    states = [backend_state(kind) for kind in BACKENDS]
    found = [find_installation(environment) for environment in ENVIRONMENTS]
    if json:
        print_json(
            {
                "backends": [backend_facts(state) for state in states],
                "environments": [environment_facts(installation) for installation in found],
            }
        )
        return
    from rich.console import Console

    console = Console()
    show_backends(console, states)
    console.print()
    show_environments(console, found)


@app.command("remove")
def remove(name: Name) -> None:
    """Remove an environment from the cache.

    Example:

        llmopt backend remove vllm
    """
    from llmopt.environment.install import remove_environment
    from llmopt.environment.installation import directory_of

    environment = _environment(name)
    if environment is None:
        typer.echo(f"{name} comes with llmopt; nothing to remove")
        return
    removed = remove_environment(environment)
    where = directory_of(environment)
    typer.echo(f"{where} is removed" if removed else f"{name} was not installed; nothing to remove")


def _explain_containers(name: str, checkpoint: Path | None) -> None:
    """Print what is done by hand for a backend that comes as a container; exit code 2."""
    from llmopt.backends.availability import container_steps
    from llmopt.backends.catalogue import BACKENDS

    kind = next((kind for kind in BACKENDS if kind.name == name), None)
    steps = None if kind is None else container_steps(kind, checkpoint)
    if kind is None or steps is None or kind.environments:
        return
    typer.echo(
        f"{kind.title} is in no package registry. With docker:\n\n{steps.shell_lines}\n\n"
        f"Then: llmopt bench MODEL --backend {name} --url http://127.0.0.1:PORT",
    )
    raise typer.Exit(2)


def _environment(name: str) -> "Environment | None":
    """The environment of a name, or of the backend of that name on this machine; None: it comes
    with llmopt. Raises UsageError.
    """
    from llmopt.backends.catalogue import BACKENDS, backend_names
    from llmopt.backends.formats import environment_for
    from llmopt.environment.catalogue import ENVIRONMENTS, find_environment
    from llmopt.errors import UsageError

    kind = next((kind for kind in BACKENDS if kind.name == name), None)
    if kind is not None and kind.name == "openai":
        raise UsageError("openai is any server that runs already", "Name it with --url.")
    if kind is not None:
        chosen = environment_for(kind)
        return None if chosen is None else find_environment(chosen)
    names = [*backend_names(), *(each.name for each in ENVIRONMENTS)]
    if name not in names:
        raise UsageError(
            f"there is no backend or environment {name!r}",
            f"Choose one of {', '.join(dict.fromkeys(names))}.",
        )
    return find_environment(name)


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


def _say(console: "Console", line: str) -> None:
    console.print(line, style="dim", highlight=False, markup=False, soft_wrap=True)
