"""`llmopt report`."""

import io
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from llmopt.cli import report_options as options
from llmopt.cli.report_options import OutputFormat, PictureKind

if TYPE_CHECKING:
    from llmopt.report.sources import Sources


def report(
    results: options.Results,
    output_format: options.Format = OutputFormat.TERMINAL,
    out: options.Out = None,
    into: options.Into = None,
    place: options.Place = None,
    png: options.Png = None,
    picture: options.Picture = PictureKind.TRADEOFF,
    tool: options.Tool = None,
    price_per_hour: options.Price = None,
    explain: options.Explain = False,
    columns: options.Columns = None,
    group_by: options.GroupRows = None,
    where: options.Where = None,
    sort: options.Sort = None,
    baseline: options.Baseline = None,
    recommend: options.Recommend = False,
    max_kld: options.MaxKld = None,
    slo: options.Slo = None,
    max_memory: options.MaxMemory = None,
) -> None:
    """Show result files as tables: size, quality loss, latency, throughput, speed-up; of results
    without a load what quantizing took. Files of vllm bench, GuideLLM, AIPerf and llama-bench are
    shown beside, marked as imported.

    Examples:

        llmopt report results/

        llmopt report results/demo --columns quality,speed --where load=c8 --sort kld

        llmopt report results/demo --recommend --max-kld 0.05 --slo "ttft_p95<300ms"

        llmopt report demo/results --format html --out report.html

        llmopt report demo/results --format markdown --out table.md --png picture.png

        llmopt report results/ --picture history --png history.svg

        llmopt report results/demo --into README.md

        llmopt report results/demo --as vllm
    """
    from llmopt.cli.output import open_output
    from llmopt.report.embed import embed_in_file
    from llmopt.report.render import render

    choice = options.read_choice(columns, group_by, where, sort, baseline)
    sources = _read(results, price_per_hour)
    if tool is not None:
        _write_restated(sources, tool, out)
        return
    if recommend or max_kld is not None or slo is not None or max_memory is not None:
        from llmopt.cli.recommend_view import write_recommendation

        bounds = options.read_bounds(max_kld, slo, max_memory)
        with open_output(out) as stream:
            write_recommendation(sources, choice, bounds, output_format, stream)
        return
    write = partial(
        render,
        sources.results,
        sources.errors,
        plot=png,
        explain=explain,
        choice=choice,
        picture=picture.value,
        kernels=sources.kernels,
    )
    if into is not None:
        text = io.StringIO()
        drawn = write("markdown", text)
        embed_in_file(into, text.getvalue(), place)
    else:
        with open_output(out) as stream:
            drawn = write(output_format.value, stream)
    _say_written(into or out, png, drawn)


def _read(paths: list[Path], price_per_hour: float | None) -> "Sources":
    from llmopt.report.sources import read_sources

    sources = read_sources(paths)
    if price_per_hour is not None:
        from llmopt.report.priced import priced

        sources.results = [priced(result, price_per_hour) for result in sources.results]
    return sources


def _write_restated(sources: "Sources", tool: str, out: Path | None) -> None:
    from llmopt.cli.output import open_output
    from llmopt.report.render import nothing_to_report
    from llmopt.report.restated import restated

    if not sources.results:
        raise nothing_to_report(sources.errors)
    with open_output(out) as stream:
        stream.write(restated(sources.results, tool))
    for error in sources.errors:
        typer.echo(f"not read: {error}", err=True)


def _say_written(document: Path | None, png: Path | None, drawn: Path | None) -> None:
    if document is not None:
        typer.echo(f"wrote {document}", err=True)
    if drawn is not None:
        typer.echo(f"wrote {drawn}", err=True)
    elif png is not None:
        typer.echo("no picture: the results do not have what it shows", err=True)
