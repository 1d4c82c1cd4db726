"""How a damage atlas is shown at a terminal.

Knows what an atlas says; measures nothing. The law: no line is wider than 100 columns, and what a
text contains is shown as it is, never read as markup.
"""

from collections.abc import Sequence

from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from llmopt.quality.atlas_report import AtlasPart, AtlasReport, Guess, WorstToken
from llmopt.report.atlas_page import additivity_sentence, visible
from llmopt.results.schema import Interval, QualityBucket

WIDTH = 100
BAR_WIDTH = 24
NUM_WORST = 8
_EIGHTHS = " ▏▎▍▌▋▊▉"


def atlas_parts(report: AtlasReport) -> list[RenderableType]:
    """What there is to print: the loss by layer, position and confidence, and the worst tokens."""
    quality = report.quality
    parts: list[RenderableType] = [
        Text(
            f"{report.target_name} against {quality.base_name}: {quality.kld_mean:#.3g} nats per"
            f" token {_interval(quality.kld_mean_ci)}, top-1 agreement {quality.top1_agreement:.1%}"
        ),
        Text(
            f"{quality.num_tokens:,} positions of {quality.text_name}, protocol"
            f" {quality.protocol_name}; {quality.confidence:.0%} intervals over windows"
        ),
        "",
        _parts_table(report),
        Text(f"KLD of the base with this one part of the model. {additivity_sentence(report)}"),
    ]
    buckets = {"tokens before": quality.by_position, "base's confidence": quality.by_confidence}
    for header, found in buckets.items():
        if found:
            parts += ["", _buckets_table(header, found)]
    if report.worst_tokens:
        parts += ["", Text("The worst tokens, the right one in brackets", style="bold")]
    for token in report.worst_tokens[:NUM_WORST]:
        parts += _token_lines(token)
    return parts


def bar(share: float, width: int) -> str:
    """A bar of `share` (0 to 1) of `width` columns, in eighths of a column."""
    eighths = round(share * width * 8)
    return "█" * (eighths // 8) + _EIGHTHS[eighths % 8].strip()


def _parts_table(report: AtlasReport) -> Table:
    table = Table(header_style="bold", box=None, pad_edge=False)
    table.add_column("part", no_wrap=True)
    columns = ["KLD", "interval", "share", "top-1"]
    halves = {(half.layer, half.kind): half.kld_mean for half in report.halves}
    columns += ["attention", "MLP"] if halves else []
    for name in columns:
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("", no_wrap=True)
    largest = max((part.kld_mean for part in report.whole_parts), default=0.0)
    for part in report.whole_parts:
        cells = _part_cells(part, report.parts_kld_sum)
        if halves:
            found = (halves.get((part.layer, kind)) for kind in ("attention", "mlp"))
            cells += ["" if kld is None else f"{kld:#.2g}" for kld in found]
        share = part.kld_mean / largest if largest > 0 else 0.0
        bar_width = BAR_WIDTH if halves else BAR_WIDTH + 16
        table.add_row(part.label, *cells, Text(bar(share, bar_width), style="cyan"))
    return table


def _part_cells(part: AtlasPart, total: float) -> list[str]:
    share = f"{part.kld_mean / total:.1%}" if total > 0 else "–"
    return [
        f"{part.kld_mean:#.3g}",
        _interval(part.kld_mean_ci, digits=2),
        share,
        f"{part.top1_agreement:.1%}",
    ]


def _buckets_table(header: str, buckets: Sequence[QualityBucket]) -> Table:
    table = Table(header_style="bold", box=None, pad_edge=False)
    table.add_column(header, no_wrap=True, min_width=18)
    for name in ("tokens", "KLD", "top-1"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("", no_wrap=True)
    largest = max(bucket.kld_mean for bucket in buckets)
    for bucket in buckets:
        share = bucket.kld_mean / largest if largest > 0 else 0.0
        table.add_row(
            bucket.label,
            f"{bucket.num_tokens:,}",
            f"{bucket.kld_mean:#.3g}",
            f"{bucket.top1_agreement:.1%}",
            Text(bar(share, BAR_WIDTH), style="cyan"),
        )
    return table


def _token_lines(token: WorstToken) -> list[Text]:
    """The token in its context, and what both models would say there."""
    context = Text(f"{token.kld:6.2f}  ")
    context.append(visible(token.before))
    context.append(f"[{visible(token.token)}]", style="bold reverse")
    context.append(visible(token.after))
    said = Text(
        f"        right {token.base_probability:.3f} → {token.target_probability:.3f}"
        f"   base {_guesses(token.base_guesses)}   model {_guesses(token.target_guesses)}",
        style="dim",
    )
    for line in (context, said):
        line.truncate(WIDTH, overflow="ellipsis")
    return [context, said]


def _guesses(guesses: Sequence[Guess]) -> str:
    shown = (f"{visible(guess.token)!r} {guess.probability:.2f}" for guess in guesses[:2])
    return ", ".join(shown)


def _interval(interval: Interval, digits: int = 3) -> str:
    low, high = interval
    return f"[{low:#.{digits}g}, {high:#.{digits}g}]"
