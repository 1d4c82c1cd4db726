"""The application: its commands, in the order of the work."""

from typing import Annotated

import typer

from llmopt import __version__
from llmopt.cli.audit import audit
from llmopt.cli.backend import app as backend
from llmopt.cli.bench import bench
from llmopt.cli.bench_kernels import bench_kernels
from llmopt.cli.doctor import doctor
from llmopt.cli.evaluate import evaluate
from llmopt.cli.gate import gate
from llmopt.cli.generate import generate
from llmopt.cli.quantize import quantize
from llmopt.cli.recipes import recipes
from llmopt.cli.report import report

app = typer.Typer(
    name="llmopt",
    no_args_is_help=True,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
app.command()(quantize)
app.command()(generate)
app.command("eval")(evaluate)
app.command()(bench)
app.command()(bench_kernels)
app.command()(recipes)
app.command()(report)
app.command()(gate)
app.command()(audit)
app.command()(doctor)
app.add_typer(backend, name="backend")


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"llmopt {__version__}")
        raise typer.Exit


@app.callback()
def options(
    _version: Annotated[
        bool,
        typer.Option("--version", help="Show the version.", callback=_print_version, is_eager=True),
    ] = False,
    threads: Annotated[
        int | None,
        typer.Option(
            min=1,
            metavar="N",
            help="Threads that compute on the CPU, at most one for each processor, also in other "
            "runtimes that are started; as many as there are processors if absent.",
        ),
    ] = None,
    cpus: Annotated[
        str | None,
        typer.Option(
            metavar="LIST",
            help="Run on these processors only, such as 0-3,8, and so all that is started.",
        ),
    ] = None,
) -> None:
    """Quantize a language model, run it, and see in one table what was lost and what was gained.

    A MODEL is a local directory, an id on the model hub such as `org/name`, or the alias
    `smollm2-135m`.
    """
    from llmopt.hardware.processors import compute_with, parse_processors, run_on

    if cpus is not None:
        run_on(parse_processors(cpus))
    if threads is not None:
        compute_with(threads)
