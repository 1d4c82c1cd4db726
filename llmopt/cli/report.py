"""`llmopt report`."""

import io
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer


class OutputFormat(StrEnum):
    """Forms of a report."""

    TERMINAL = "terminal"
    MARKDOWN = "markdown"
    CSV = "csv"
    JSON = "json"


def report(
    results: Annotated[list[Path], typer.Argument(help="Result files, or directories of them.")],
    output_format: Annotated[
        OutputFormat, typer.Option("--format", "-f", help="Form of the report.")
    ] = OutputFormat.TERMINAL,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="Write here, not to standard output.")
    ] = None,
    into: Annotated[
        Path | None,
        typer.Option(help="Replace the Markdown report between marker lines in this document."),
    ] = None,
    place: Annotated[
        str | None, typer.Option(help="Which of the document's places, if they have names.")
    ] = None,
    png: Annotated[
        Path | None,
        typer.Option(help="Draw quality loss against throughput, or bits, into this file."),
    ] = None,
    tool: Annotated[
        str | None,
        typer.Option("--as", help="Print the runs as vllm, guidellm, aiperf or mlperf defines."),
    ] = None,
    price_per_hour: Annotated[
        float | None,
        typer.Option(min=0, help="Price of the machine, for the cost of a million tokens."),
    ] = None,
) -> None:
    """Show result files as tables: size, quality loss, latency, throughput, speed-up; of results
    without a load what quantizing took.

    Examples:

        llmopt report results/

        llmopt report demo/results --format markdown --out table.md --png picture.png

        llmopt report results/demo --into README.md

        llmopt report results/methods-smollm2 --into README.md --place methods-smollm2

        llmopt report results/demo --as vllm
    """
    from llmopt.cli.output import open_output
    from llmopt.report.embed import embed_in_file
    from llmopt.report.render import render
    from llmopt.results.store import read_results

    found, errors = read_results(results)
    if price_per_hour is not None:
        from llmopt.report.priced import priced

        found = [priced(result, price_per_hour) for result in found]
    if tool is not None:
        from llmopt.report.restated import restated

        with open_output(out) as stream:
            stream.write(restated(found, tool))
        return
    if into is not None:
        text = io.StringIO()
        picture = render(found, errors, "markdown", text, plot=png)
        embed_in_file(into, text.getvalue(), place)
    else:
        with open_output(out) as stream:
            picture = render(found, errors, output_format.value, stream, plot=png)
    for written in (into, out if into is None else None):
        if written is not None:
            typer.echo(f"wrote {written}", err=True)
    if picture is not None:
        typer.echo(f"wrote {picture}", err=True)
    elif png is not None:
        typer.echo("no picture: no row has both quality and throughput or bits", err=True)
