"""From the two results of a cell and a rule: how much worse the metric is, and how sure that is.

Knows nothing about verdicts. The laws: runs of a speed metric are paired only if they were made by
turns, windows of a quality metric only if both read the same text; all changes are shares of the
baseline's value, above 0 for the worse.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from statistics import fmean

from llmopt.report.gate.equivalence import (
    MIN_VALUES,
    Change,
    exact_change,
    normal_change,
    paired_change,
    unknown_change,
    unpaired_change,
)
from llmopt.report.gate.matching import CellPair
from llmopt.report.gate.metrics import NO_BASELINE, Metric, run_values, size_value
from llmopt.report.gate.noise_floor import ASSUMED_SESSION, LearnedNoise, Noise
from llmopt.report.gate.quality_windows import quality_change
from llmopt.report.gate.request_blocks import log_error
from llmopt.report.gate.rules import Rule
from llmopt.results.schema import CellResult

# Checks of how well a number is known, which the gate judges by itself; a failure of any other
# says that the number is of something else.
_OF_PRECISION = frozenset({"samples", "spread", "drift"})


@dataclass(frozen=True, slots=True)
class Context:
    """What all evidence of a gate shares.

    num_tests: comparisons in which chance has a part
    reference: the cell whose runs the speed of all others is divided by; None: no such cell
    """

    num_tests: int = 1
    noise: LearnedNoise | None = None
    reference: CellPair | None = None


@dataclass(frozen=True, slots=True)
class Evidence:
    """One comparison. The change is a share of the baseline; `before`, `after` in its own unit.

    problem: why the two must not be compared, in words; the change is then unknown
    """

    cell_id: str
    metric: Metric
    before: float
    after: float
    change: Change
    tolerance: float
    problem: str | None = None


def collect(rule: Rule, pair: CellPair, context: Context) -> Evidence | None:
    """The evidence for one rule in one cell; None if neither side has the metric there."""
    metric = rule.of
    if metric.kind == "quality":
        found = quality_change(metric, pair, rule.absolute)
        if found is None:
            return None
        tolerance = max(rule.relative_tolerance(found.before), found.noise)
        return Evidence(
            pair.cell_id, metric, found.before, found.after, found.change, tolerance, found.problem
        )
    if metric.kind == "size":
        return _size(rule, pair)
    return _speed(rule, pair, context)


def _size(rule: Rule, pair: CellPair) -> Evidence | None:
    before, after = size_value(rule.of, pair.old), size_value(rule.of, pair.new)
    if not before or after is None:
        return None
    change = exact_change(after / before - 1)
    tolerance = rule.relative_tolerance(before)
    return Evidence(pair.cell_id, rule.of, before, after, change, tolerance)


def _speed(rule: Rule, pair: CellPair, context: Context) -> Evidence | None:
    metric = rule.of
    old, new = run_values(metric, pair.old), run_values(metric, pair.new)
    if old is None and new is None:
        return None
    problem = _speed_problem(pair, old, new)
    reference = context.reference
    if reference is not None and reference.cell_id == pair.cell_id:
        return None
    if reference is not None and old is not None and new is not None:
        old = _ratios(metric, old, reference.old)
        new = _ratios(metric, new, reference.new)
        if reference.old.environment.device != pair.old.environment.device:
            problem = f"the baseline of the reference {reference.cell_id} is of another machine"
        elif not old or not new:
            problem = f"the reference {reference.cell_id} does not have it"
    if problem is not None or old is None or new is None:
        change = unknown_change(math.nan, "none")
        return Evidence(pair.cell_id, metric, math.nan, math.nan, change, math.nan, problem)
    change = _relative(_log_change(metric, pair, old, new, context), metric.is_higher_better)
    before, after = (math.exp(fmean(map(math.log, values))) for values in (old, new))
    return Evidence(
        pair.cell_id, metric, before, after, change, rule.relative_tolerance(before), None
    )


def _speed_problem(
    pair: CellPair, old: Sequence[float] | None, new: Sequence[float] | None
) -> str | None:
    if old is None or new is None:
        return NO_BASELINE if old is None else "the new result does not have it"
    for side, name in ((pair.old, "the baseline"), (pair.new, "the new result")):
        for check in side.validity:
            if not check.passed and check.name not in _OF_PRECISION:
                return f"{name} is not valid ({check.name}: {check.detail})"
    if _load(pair.old) != _load(pair.new):
        return "the two are of different loads"
    if pair.old.backend.name != pair.new.backend.name:
        return f"the baseline ran on {pair.old.backend.name}, the new on {pair.new.backend.name}"
    return None


def _load(result: CellResult) -> object:
    """The load, without the rate that a search found, which is a result."""
    if result.load is None or result.search is None:
        return result.load
    return replace(result.load, rate=None)


def _ratios(metric: Metric, values: Sequence[float], reference: CellResult) -> list[float]:
    """Each run over the reference's run of the same repeat: they share the machine's state."""
    others = run_values(metric, reference) or []
    return [own / other for own, other in zip(values, others, strict=False)]


def _log_change(
    metric: Metric, pair: CellPair, old: Sequence[float], new: Sequence[float], context: Context
) -> Change:
    """The change of the logarithm for the worse."""
    sign = -1.0 if metric.is_higher_better else 1.0
    before, after = ([sign * math.log(value) for value in values] for values in (old, new))
    known = None if context.noise is None else context.noise.find(pair.cell_id, metric.name)
    if pair.is_interleaved and len(before) == len(after) >= MIN_VALUES:
        differences = [b - a for a, b in zip(before, after, strict=True)]
        return paired_change(differences, context.num_tests, 0.0 if known is None else known.pair)
    session, num_sessions = _session_noise(known)
    fewest = min(len(before), len(after))
    if fewest >= MIN_VALUES:
        return unpaired_change(before, after, session, num_sessions)
    value = fmean(after) - fmean(before)
    errors = [log_error(metric, side.runs) for side in (pair.old, pair.new)]
    if any(error is None for error in errors):
        return unknown_change(value, "too few runs", MIN_VALUES - fewest)
    squares = [error**2 for error in errors if error is not None]
    error = math.sqrt(sum(squares) + 2 * session**2)
    return normal_change(value, error, "blocks of requests, as there are too few runs")


def _session_noise(known: Noise | None) -> tuple[float, int | None]:
    """The deviation between sessions, and how many it was learned from; None: it is assumed."""
    if known is None or known.session is None:
        return ASSUMED_SESSION, None
    return known.session, known.num_sessions


def _relative(change: Change, is_higher_better: bool) -> Change:
    """From a logarithm, above 0 for the worse, to a share of the baseline."""

    def share(log: float) -> float:
        return -math.expm1(-log) if is_higher_better else math.expm1(log)

    low, high = change.interval
    return replace(change, value=share(change.value), interval=(share(low), share(high)))
