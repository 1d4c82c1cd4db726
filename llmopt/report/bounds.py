"""What a cell must keep to be shipped: a loss of quality, latencies, memory; and whether it does.

Knows nothing about choosing. The law: what was not measured keeps no bound; and a value is said to
keep a bound surely only if its whole 95 % interval does.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from llmopt.report.columns import three_digits
from llmopt.report.load_notes import slo_text
from llmopt.report.rows import Row
from llmopt.results.schema import CellResult, Interval, Percentiles, QualityRecord, SloTerm

Standing = Literal["keeps", "unsettled", "misses", "unknown"]


@dataclass(frozen=True, slots=True)
class Bounds:
    """None, or empty: there is no such bound."""

    max_kld: float | None = None
    slo: tuple[SloTerm, ...] = ()
    max_memory_bytes: int | None = None


@dataclass(frozen=True, slots=True)
class Check:
    """One bound on one cell. `value` and `limit` are in `unit`; `value` None: not measured.

    has_interval: whether the scatter of the value is known, or it has none.
    """

    name: str
    value: float | None
    limit: float
    unit: str
    interval: Interval | None = None
    has_interval: bool = True
    is_lower_bound: bool = False  # the true value is at least this

    @property
    def standing(self) -> Standing:
        """Keeps or misses surely, or by its value alone (unsettled: it is below the limit)."""
        if self.value is None:
            return "unknown"
        if self.value > self.limit:
            return "misses"
        upper = self.interval[1] if self.interval else self.value
        is_sure = self.has_interval and not self.is_lower_bound and upper <= self.limit
        return "keeps" if is_sure else "unsettled"

    @property
    def excess(self) -> float:
        """Value / limit; infinite where it is not known."""
        if self.value is None or (self.limit == 0 and self.value > 0):
            return float("inf")
        return self.value / self.limit if self.limit else 0.0

    @property
    def text(self) -> str:
        """The value beside its limit, in words."""
        if self.value is None:
            return f"{self.name} was not measured"
        unit = f" {self.unit}" if self.unit else ""
        ends = f" [{_text(self.interval[0])}, {_text(self.interval[1])}]" if self.interval else ""
        sign = "<=" if self.value <= self.limit else ">"
        bound = ">= " if self.is_lower_bound else ""
        line = (
            f"{self.name} {bound}{_text(self.value)}{ends}{unit} {sign} {_text(self.limit)}{unit}"
        )
        if not self.has_interval:
            return f"{line} (too few samples for an interval)"
        return line


def check_bounds(
    bounds: Bounds, result: CellResult, row: Row, quality: QualityRecord | None
) -> Iterator[Check]:
    """Yield a check for each bound. `quality` is that of the target, wherever it was measured."""
    if bounds.max_kld is not None:
        yield _kld(bounds.max_kld, row, quality)
    for term in bounds.slo:
        yield _latency(term, result, row)
    if bounds.max_memory_bytes is not None:
        peak = row.speed.summary.peak_memory_bytes if row.speed else None
        value = None if peak is None else peak / 1e6
        yield Check("peak memory", value, bounds.max_memory_bytes / 1e6, "MB")


def _kld(limit: float, row: Row, quality: QualityRecord | None) -> Check:
    if row.is_base:
        return Check("KLD", 0.0, limit, "nats")
    if quality is None or (row.model is not None and row.model.is_dummy):
        return Check("KLD", None, limit, "nats")
    return Check(
        "KLD",
        quality.kld_mean,
        limit,
        "nats",
        quality.kld_mean_ci,
        is_lower_bound=quality.lower_bound,
    )


def _latency(term: SloTerm, result: CellResult, row: Row) -> Check:
    from llmopt.bench.goodput import term_interval, term_ms

    name = slo_text((term,)).partition(" <=")[0]
    if row.speed is None or not any(run.requests for run in result.runs):
        return Check(name, None, term.limit_ms, "ms")
    value = term_ms(result.runs, term)
    found: Percentiles | None = getattr(row.speed.summary, f"{term.metric}_ms")
    interval = None
    if found is not None:
        interval = term_interval(result.runs, term, found.n_eff or found.n)
    is_every = term.percent is None
    return Check(
        name, value, term.limit_ms, "ms", interval, has_interval=bool(interval) or is_every
    )


def _text(value: float) -> str:
    return three_digits(value) if value >= 1 else f"{value:.3g}"
