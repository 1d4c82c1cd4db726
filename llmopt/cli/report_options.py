"""The options of `llmopt report`, and what the reader chose with them."""

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from llmopt.report.bounds import Bounds
    from llmopt.report.choice import Choice

_TABLE = "What the tables show"


class OutputFormat(StrEnum):
    """Forms of a report."""

    TERMINAL = "terminal"
    MARKDOWN = "markdown"
    CSV = "csv"
    JSON = "json"
    LATEX = "latex"
    HTML = "html"


class Group(StrEnum):
    """What the rows of a table have in common."""

    TARGET = "target"
    LOAD = "load"
    BACKEND = "backend"


class PictureKind(StrEnum):
    """Kinds of pictures; tradeoff: quality against throughput, or bits where nothing was served."""

    TRADEOFF = "tradeoff"
    THROUGHPUT = "throughput"
    SIZE = "size"
    BITS = "bits"
    SCALING = "scaling"
    LATENCY = "latency"
    ROOFLINE = "roofline"
    TIME = "time"
    HISTORY = "history"
    KERNELS = "kernels"


Results = Annotated[
    list[Path],
    typer.Argument(help="Result files, or directories of them; also of vllm bench and others."),
]
Format = Annotated[OutputFormat, typer.Option("--format", "-f", help="Form of the report.")]
Out = Annotated[
    Path | None, typer.Option("--out", "-o", help="Write here, not to standard output.")
]
Into = Annotated[
    Path | None,
    typer.Option(help="Replace the Markdown report between marker lines in this document."),
]
Place = Annotated[
    str | None, typer.Option(help="Which of the document's places, if they have names.")
]
Explain = Annotated[bool, typer.Option("--explain", help="Say where the time of each row went.")]
Png = Annotated[
    Path | None,
    typer.Option(
        "--png", "--picture-file", help="Draw a picture into this file: PNG, or SVG by its name."
    ),
]
Picture = Annotated[PictureKind, typer.Option(help="Which picture.")]
Tool = Annotated[
    str | None,
    typer.Option("--as", help="Print the runs as vllm, guidellm, aiperf or mlperf defines."),
]
Price = Annotated[
    float | None,
    typer.Option(min=0, help="Price of the machine, for the cost of a million tokens."),
]
Columns = Annotated[
    str | None,
    typer.Option(
        help="Columns, or groups of them: quality, size, speed, latency, hardware, cost.",
        rich_help_panel=_TABLE,
    ),
]
GroupRows = Annotated[
    Group | None,
    typer.Option("--group-by", help="One table for each of these.", rich_help_panel=_TABLE),
]
Where = Annotated[
    list[str] | None,
    typer.Option(
        help="Only such rows: load=c16, target=gptq*, kld<0.05. May be repeated.",
        rich_help_panel=_TABLE,
    ),
]
Sort = Annotated[
    str | None,
    typer.Option(help="Best first by this column; -COLUMN: worst first.", rich_help_panel=_TABLE),
]
Baseline = Annotated[
    str | None,
    typer.Option(
        help="Speed-ups against this TARGET, BACKEND:TARGET, or the same target on this BACKEND.",
        rich_help_panel=_TABLE,
    ),
]
_SHIP = "Which cell to ship"
Recommend = Annotated[
    bool,
    typer.Option(
        "--recommend",
        help="Say which cell to ship within the bounds, and why, instead of the tables.",
        rich_help_panel=_SHIP,
    ),
]
MaxKld = Annotated[
    float | None,
    typer.Option(min=0, help="Most KL divergence, nats per token.", rich_help_panel=_SHIP),
]
Slo = Annotated[
    str | None,
    typer.Option(
        help="Bounds on latencies, such as ttft_p95<300ms,tpot_p95<50ms.", rich_help_panel=_SHIP
    ),
]
MaxMemory = Annotated[
    str | None,
    typer.Option(help="Most memory while serving, such as 8GB.", rich_help_panel=_SHIP),
]


def read_bounds(max_kld: float | None, slo: str | None, max_memory: str | None) -> "Bounds":
    """What these options say. Raises UsageError: no bound at all, or one that is none."""
    from llmopt.bench.slo import parse_slo
    from llmopt.cli.memory_size import parse_memory_size
    from llmopt.errors import UsageError
    from llmopt.report.bounds import Bounds

    if max_kld is None and slo is None and max_memory is None:
        raise UsageError(
            "--recommend needs a bound: without one the fastest loses any quality",
            "Add --max-kld, --slo or --max-memory.",
        )
    return Bounds(
        max_kld=max_kld,
        slo=parse_slo(slo) if slo is not None else (),
        max_memory_bytes=(
            parse_memory_size("--max-memory", max_memory) if max_memory is not None else None
        ),
    )


def read_choice(
    columns: str | None,
    group_by: Group | None,
    where: list[str] | None,
    sort: str | None,
    baseline: str | None,
) -> "Choice":
    """What these options say. Raises UsageError for a condition that is none."""
    from llmopt.report.choice import Choice
    from llmopt.report.where import parse_condition

    return Choice(
        columns=tuple(name.strip() for name in columns.split(",")) if columns else (),
        group_by=group_by.value if group_by else None,
        where=tuple(map(parse_condition, where or ())),
        sort=sort,
        baseline=baseline,
    )
