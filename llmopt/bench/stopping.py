"""How often a sweep is measured: a fixed number of rounds, or until its numbers are sure.

Knows nothing about how runs are made. The laws: a round is one run of every cell, so that repeats
stay interleaved and paired with the base; the decision after a round follows from the runs up to
it, so that an interrupted sweep decides the same.

To stop when an interval is narrow costs it some of its coverage: of normal runs that scatter by 1
to 8 % and a bound of 3 %, 95 % intervals hold the truth in 90 % of the cases or more.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from statistics import median

from llmopt.bench.cells import OpenCell
from llmopt.bench.latencies import LATENCIES
from llmopt.bench.statistics import half_width, relative_half_width, runs_needed
from llmopt.recipe.schema import Recipe
from llmopt.results.schema import RunRecord, StoppingRecord

SPEEDUP = "speed-up"


@dataclass(frozen=True, slots=True)
class Round:
    """One run of every cell. `expected`: rounds in all, as far as can be told before it."""

    repeat: int
    expected: int
    detail: str  # for whoever watches


@dataclass(frozen=True, slots=True)
class Width:
    """Half of the interval of a cell's number, as a share of the number."""

    cell_id: str
    name: str
    share: float
    runs_needed: int | None  # to be within the bound, if runs go on to scatter so

    def __str__(self) -> str:
        if math.isinf(self.share):
            return f"{self.name} of {self.cell_id} has too few runs"
        return f"{self.name} of {self.cell_id} is within {_percent(self.share)}"


def rounds(recipe: Recipe, cells: Sequence[OpenCell]) -> Iterator[Round]:
    """Yield the rounds to be measured, each when the one before is done.

    `recipe.repeats` of them, and with `until_ci` more until every main number of every cell is
    within it, or `max_repeats` are done. Cells with an error do not count.
    """
    repeat = 0
    while (found := _more(recipe, cells, repeat)) is not None:
        yield found
        repeat += 1


def _more(recipe: Recipe, cells: Sequence[OpenCell], repeat: int) -> Round | None:
    """The round after `repeat` rounds; None: it is enough."""
    bound, least = recipe.until_ci, recipe.repeats
    if bound is None:
        detail = f"run {repeat + 1} of {least}"
        return Round(repeat, least, detail) if repeat < least else None
    most = max(least, recipe.max_repeats)
    widest = widest_of(recipe, cells, repeat)
    is_done = repeat >= most or widest is None or widest.share <= bound
    if repeat >= least and is_done:
        return None
    expected = least
    detail = f"run {repeat + 1} of {least} to {most}"
    if repeat >= least and widest is not None:
        expected = min(most, max(repeat + 1, widest.runs_needed or repeat + 1))
        detail = f"run {repeat + 1} of at most {most}: {widest}, not {_percent(bound)}"
    return Round(repeat, expected, detail)


def widest_of(recipe: Recipe, cells: Sequence[OpenCell], num_rounds: int) -> Width | None:
    """The least sure number of all cells after so many rounds; None without a number."""
    assert recipe.until_ci is not None, "a width has a bound to be held against"
    found = [
        Width(opened.cell.cell_id, name, share, runs_needed(values, recipe.until_ci))
        for opened in cells
        if opened.error is None
        for name, values in _numbers_of(recipe, opened, cells, num_rounds).items()
        for share in [_share(name, values)]
    ]
    return max(found, key=lambda width: width.share, default=None)


def stopping_record(
    recipe: Recipe, opened: OpenCell, cells: Sequence[OpenCell]
) -> StoppingRecord | None:
    """Why a cell has no more runs; None if their number was fixed, or it failed."""
    bound = recipe.until_ci
    if bound is None or opened.error is not None or not opened.runs:
        return None
    num_rounds = max(run.repeat for run in opened.runs) + 1
    numbers = _numbers_of(recipe, opened, cells, num_rounds)
    widths = {name: _share(name, values) for name, values in numbers.items()}
    widest = widest_of(recipe, cells, num_rounds)
    if widest is None or widest.share <= bound:
        reason = f"after {num_rounds} runs every main number is within {_percent(bound)}"
    else:
        reason = f"stopped at max_repeats, {num_rounds} runs: {widest}, not {_percent(bound)}"
    is_settled = all(width <= bound for width in widths.values())
    return StoppingRecord(bound, recipe.max_repeats, is_settled, widths, reason)


def main_numbers(runs: Sequence[RunRecord], base: Sequence[RunRecord]) -> dict[str, list[float]]:
    """What must be sure, one value per run: output throughput, TPOT and TTFT at p50, and the ratio
    of throughputs to the base's run of the same round. Without what there are no samples of.
    """
    throughputs = {run.repeat: _throughput(run) for run in runs}
    of_base = {run.repeat: _throughput(run) for run in base}
    numbers = {
        "output_throughput": list(throughputs.values()),
        "tpot_p50": _medians(runs, "tpot"),
        "ttft_p50": _medians(runs, "ttft"),
        SPEEDUP: [
            value / of_base[repeat]
            for repeat, value in throughputs.items()
            if of_base.get(repeat, 0.0) > 0 and value > 0
        ],
    }
    return {name: values for name, values in numbers.items() if values}


def _numbers_of(
    recipe: Recipe, opened: OpenCell, cells: Sequence[OpenCell], num_rounds: int
) -> dict[str, list[float]]:
    base_target = recipe.base.as_target()
    base: list[RunRecord] = []
    if opened.cell.target != base_target:
        where = (opened.cell.load, opened.cell.backend)
        base = [
            run
            for other in cells
            if other.cell.target == base_target and other.error is None
            if (other.cell.load, other.cell.backend) == where
            for run in other.runs
        ]
    own = [run for run in opened.runs if run.repeat < num_rounds]
    return main_numbers(own, base)


def _share(name: str, values: Sequence[float]) -> float:
    """Of a ratio that of its geometric mean, as the report shows it."""
    if name != SPEEDUP or len(values) < 2:
        return relative_half_width(values)
    logs = [math.log(value) for value in values]
    return math.inf if math.isinf(relative_half_width(values)) else math.expm1(half_width(logs))


def _throughput(run: RunRecord) -> float:
    served = sum(r.num_output_tokens for r in run.requests if r.error is None)
    return served / run.duration_s if run.duration_s > 0 else 0.0


def _medians(runs: Sequence[RunRecord], metric: str) -> list[float]:
    samples = [
        [v for r in run.requests if r.error is None for v in LATENCIES[metric](r)] for run in runs
    ]
    return [median(found) for found in samples if found]


def _percent(share: float) -> str:
    return f"{100 * share:.3g} %"
