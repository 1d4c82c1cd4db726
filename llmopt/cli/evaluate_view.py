"""How the quality of a model looks at a terminal: figures, splits, the noise floor, the verdict.

Knows what a record says; computes nothing. The law: no line is wider than 100 columns, and a
perplexity never stands without the name of its protocol.
"""

import sys
from collections.abc import Iterable, Sequence
from typing import TextIO

from rich.console import Console, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from llmopt.quality.prediction import PredictionRecord
from llmopt.report.columns import kld_interval_text
from llmopt.results.schema import (
    DeltaP,
    Interval,
    NoiseFloor,
    QualityBucket,
    QualityRecord,
    VerdictLabel,
)

WIDTH = 100
_STYLES: dict[VerdictLabel, str] = {
    "indistinguishable": "green",
    "above noise": "yellow",
    "worse": "red",
}

Line = tuple[str, str]  # what it is, and its figures


def print_parts(parts: Iterable[RenderableType], out: TextIO | None = None) -> None:
    """Print on standard output, with colours at a terminal and as plain text elsewhere."""
    out = out or sys.stdout
    terminal = Console(file=out, highlight=False)
    width = min(WIDTH, terminal.width) if terminal.is_terminal else WIDTH
    console = Console(file=out, highlight=False, width=width)
    if terminal.is_terminal:
        for part in parts:
            console.print(part)
        return
    with console.capture() as capture:
        for part in parts:
            console.print(part)
    out.write("".join(f"{line.rstrip()}\n" for line in capture.get().splitlines()))


def quality_parts(record: QualityRecord, target: str) -> list[RenderableType]:
    """What there is to print of a comparison; `target` names the model and its scheme."""
    title = f"{target} against {record.base_name} ({record.base_scheme})"
    parts: list[RenderableType] = [
        Text(title, style="bold"),
        _grid([*_perplexity_lines(record), *_divergence_lines(record)]),
    ]
    if record.by_confidence or record.by_position:
        splits = Table.grid(padding=(0, 4))
        splits.add_row(
            _split("base's top-1 probability", record.by_confidence),
            _split("tokens before", record.by_position),
        )
        parts.append(Padding(splits, (1, 0)))
    if record.noise is not None:
        parts.append(_grid([("noise floor", _noise_text(record.noise, record.protocol_name))]))
    if record.verdict is not None:
        style = f"bold {_STYLES[record.verdict.label]}"
        parts.append(Padding(Text(record.verdict.text, style=style), (0, 0, 1, 0)))
    parts += [Text(note, style="dim") for note in _notes(record)]
    return parts


def prediction_parts(record: PredictionRecord) -> list[RenderableType]:
    """What there is to print of a model without a base."""
    measured, protocol = record.perplexity, record.protocol_name
    lines = [(f"perplexity ({protocol})", f"{measured.ppl:.5g} {_ends(measured.ppl_ci, '.4g')}")]
    if measured.bits_per_byte is not None:
        lines.append((f"bits per byte ({protocol})", f"{measured.bits_per_byte:.5g}"))
    if measured.word_ppl is not None:
        lines.append((f"word perplexity ({protocol})", f"{measured.word_ppl:.5g}"))
    where = _where(record.num_tokens, record.text_name, record.text_sha256)
    return [
        Text(f"{record.model_name} ({record.model_scheme})", style="bold"),
        _grid(lines),
        Text(
            f"{where}, protocol {protocol}: {record.protocol}; "
            f"{record.confidence:.0%} intervals over windows",
            style="dim",
        ),
    ]


def _grid(lines: Sequence[Line]) -> Table:
    grid = Table.grid(padding=(0, 2))
    for label, figures in lines:
        grid.add_row(label, figures)
    return grid


def _perplexity_lines(record: QualityRecord) -> list[Line]:
    protocol = record.protocol_name
    lines = [
        (
            f"perplexity ({protocol})",
            f"{_with_ci(record.ppl, record.ppl_ci)}, base "
            f"{_with_ci(record.base_ppl, record.base_ppl_ci)}",
        ),
        ("  ratio to the base", f"{record.ppl_ratio:.4f} {_ends(record.ppl_ratio_ci, '.4f')}"),
    ]
    for name, own, base in (
        ("bits per byte", record.bits_per_byte, record.base_bits_per_byte),
        ("word perplexity", record.word_ppl, record.base_word_ppl),
    ):
        if own is not None and base is not None:
            lines.append((f"{name} ({protocol})", f"{own:.5g}, base {base:.5g}"))
    return lines


def _divergence_lines(record: QualityRecord) -> list[Line]:
    bound = "at least " if record.lower_bound else ""
    mean = kld_interval_text(record.kld_mean, record.kld_mean_ci)
    quantiles = {
        "median": record.kld_median,
        "90 %": record.kld_p90,
        "99 %": record.kld_p99,
        "99.9 %": record.kld_p999,
        "max": record.kld_max,
    }
    spread = ", ".join(f"{name} {q:.3g}" for name, q in quantiles.items() if q is not None)
    low, high = record.top1_agreement_ci
    return [
        ("KL divergence", f"{bound}{mean} nats per token"),
        ("", spread),
        ("top-1 agreement", f"{record.top1_agreement:.2%} [{100 * low:.2f}, {100 * high:.2f}]"),
        *(_delta_p_lines(record.delta_p) if record.delta_p else ()),
    ]


def _delta_p_lines(change: DeltaP) -> list[Line]:
    low, high = change.mean_ci
    percentiles = (
        change.p01,
        change.p05,
        change.p25,
        change.p50,
        change.p75,
        change.p95,
        change.p99,
    )
    return [
        (
            "Δp of the right token",
            f"mean {100 * change.mean:+.3f}% [{100 * low:+.3f}, {100 * high:+.3f}], "
            f"RMS {change.rms:.3%}",
        ),
        (
            "  1, 5, 25, 50, 75, 95, 99 %",
            "  ".join(f"{100 * value:+.2f}" for value in percentiles) + "%",
        ),
    ]


def _split(header: str, buckets: Sequence[QualityBucket]) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column(header, no_wrap=True)
    for column in ("tokens", "KLD", "top-1"):
        table.add_column(column, justify="right", no_wrap=True)
    for bucket in buckets:
        table.add_row(
            bucket.label,
            f"{bucket.num_tokens:,}",
            f"{bucket.kld_mean:.3g}",
            f"{bucket.top1_agreement:.1%}",
        )
    return table


def _noise_text(noise: NoiseFloor, protocol: str) -> str:
    return (
        f"KL divergence {kld_interval_text(noise.kld_mean, noise.kld_mean_ci)}, perplexity ratio "
        f"({protocol}) {noise.ppl_ratio:.4f} {_ends(noise.ppl_ratio_ci, '.4f')}: "
        f"the base in {noise.scheme}"
    )


def _notes(record: QualityRecord) -> Iterable[str]:
    yield (
        f"{_where(record.num_tokens, record.text_name, record.text_sha256)}, protocol "
        f"{record.protocol_name}: {record.protocol}; {record.confidence:.0%} intervals over windows"
    )
    if record.base_cache_error is not None:
        yield (
            "the base's log-probabilities are from the cache on disk, which costs "
            f"{record.base_cache_error:.1e} nats of KL divergence per token"
        )
    if record.source != "llmopt":
        yield f"the model's log-probabilities are those of {record.source}"
    if record.lower_bound:
        yield "only the likeliest log-probabilities are known: the KL divergence is a lower bound"


def _where(num_tokens: int, text_name: str, text_sha256: str) -> str:
    return f"{num_tokens:,} positions of {text_name} (sha256 {text_sha256[:8]})"


def _with_ci(value: float, interval: Interval | None) -> str:
    return f"{value:.5g}" if interval is None else f"{value:.5g} {_ends(interval, '.4g')}"


def _ends(interval: Interval, digits: str) -> str:
    low, high = interval
    return f"[{low:{digits}}, {high:{digits}}]"
