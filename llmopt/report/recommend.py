"""Which cell to ship: the fastest that keeps every bound, or, without a load, the smallest.

Knows nothing about layout. The law: cells that their runs cannot tell apart are said to be so, and
among them the one that loses the least quality is named; only requests of the same shape, of one
model on one machine, are compared; nothing that misses a bound is recommended.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from llmopt.bench.statistics import MIN_RUNS, paired_ratio
from llmopt.report.best import is_surely_better
from llmopt.report.bounds import Bounds, Check, check_bounds
from llmopt.report.measures import MEASURES, Estimate
from llmopt.report.rows import Row
from llmopt.report.where import load_name
from llmopt.results.schema import CellResult, QualityRecord


@dataclass(frozen=True, slots=True)
class Candidate:
    """A cell with the bounds it must keep; `gain` is its throughput, or its size."""

    result: CellResult
    row: Row
    quality: QualityRecord | None
    checks: tuple[Check, ...]
    gain: Estimate

    @property
    def name(self) -> str:
        """Target, backend and load."""
        load = "" if self.row.load is None else f" at {load_name(self.row)}"
        return f"{self.row.target} on {self.row.backend}{load}"

    @property
    def kld(self) -> float:
        """For ordering; that of a target whose loss is not known is infinite."""
        if self.row.is_base:
            return 0.0
        return self.quality.kld_mean if self.quality else float("inf")

    @property
    def keeps_all(self) -> bool:
        """By the values alone."""
        return all(check.standing in ("keeps", "unsettled") for check in self.checks)

    @property
    def is_sure(self) -> bool:
        """With the whole of every interval."""
        return all(check.standing == "keeps" for check in self.checks)


@dataclass(frozen=True, slots=True)
class Recommendation:
    """The answer for one model, machine and shape of requests.

    `tied` are the cells that keep the bounds and are not distinguishable from the fastest, `ship`
    among them. `ship` None: no cell keeps all bounds; then `nearest` is the one that misses least.
    """

    subject: str
    by: str  # "throughput" or "size"
    ship: Candidate | None
    runner_up: Candidate | None
    tied: tuple[Candidate, ...]
    nearest: Candidate | None
    num_candidates: int
    num_kept: int  # by their values
    num_sure: int  # of these, with the whole of every interval


def recommend(
    results: Sequence[CellResult], rows: Sequence[Row], bounds: Bounds
) -> list[Recommendation]:
    """One recommendation for each model, machine and shape of requests.

    Results without a load are considered where none has one.
    """
    groups: dict[str, list[Candidate]] = {}
    is_served = any(row.speed is not None for row in rows)
    qualities = {_target_key(r): r.quality for r in results if r.quality is not None}
    for result, row in zip(results, rows, strict=True):
        gain = MEASURES["throughput" if is_served else "size"].of(row)
        if gain is None or row.status != "ok":
            continue
        quality = result.quality or qualities.get(_target_key(result))
        checks = tuple(check_bounds(bounds, result, row, quality))
        candidate = Candidate(result, row, quality, checks, gain)
        groups.setdefault(_subject(row), []).append(candidate)
    by = "throughput" if is_served else "size"
    return [_choose(subject, by, members) for subject, members in groups.items()]


def _choose(subject: str, by: str, members: Sequence[Candidate]) -> Recommendation:
    kept = [each for each in members if each.keeps_all]
    sure = [each for each in kept if each.is_sure]
    pool = sorted(sure or kept, key=lambda each: _rank(each, by))
    if not pool:
        nearest = min(members, key=lambda each: max(check.excess for check in each.checks))
        return Recommendation(subject, by, None, None, (), nearest, len(members), 0, 0)
    first = pool[0]
    tied = [first, *(each for each in pool[1:] if not is_apart(first, each, by))]
    tied.sort(key=lambda each: (each.kld, *_rank(each, by)))
    rest = [each for each in pool if each is not tied[0]]
    runner_up = tied[1] if len(tied) > 1 else next(iter(rest), None)
    return Recommendation(
        subject, by, tied[0], runner_up, tuple(tied), None, len(members), len(kept), len(sure)
    )


def is_apart(one: Candidate, other: Candidate, by: str) -> bool:
    """Whether `one` is better than `other` for sure: by pairs of runs that took turns, where there
    are any, else by their intervals.
    """
    if by == "size":
        return is_surely_better(one.gain, other.gain, "lower")
    ours, theirs = _runs(one), _runs(other)
    is_paired = one.row.recipe == other.row.recipe and one.row.load == other.row.load
    if is_paired and len(ours) == len(theirs) >= MIN_RUNS:
        _, interval = paired_ratio(ours, theirs)
        return interval is not None and interval[0] > 1
    return is_surely_better(one.gain, other.gain, "higher")


def missed(candidate: Candidate) -> Iterator[Check]:
    """Yield the bounds that a cell does not keep."""
    yield from (check for check in candidate.checks if check.standing in ("misses", "unknown"))


def _runs(candidate: Candidate) -> tuple[float, ...]:
    speed = candidate.row.speed
    return speed.summary.run_output_throughput if speed else ()


def _rank(candidate: Candidate, by: str) -> tuple[float, float]:
    gain = candidate.gain.value
    return (gain if by == "size" else -gain, candidate.kld)


def _target_key(result: CellResult) -> tuple[str, str, str]:
    return result.recipe_name, result.target, result.backend.name


def _subject(row: Row) -> str:
    model = row.model.name if row.model else "a model"
    if row.load is None:
        return f"{model} on {row.machine}"
    lengths = f"{row.load.prompt_tokens} prompt + {row.load.output_tokens} output tokens"
    return f"{model} on {row.machine}, requests of {lengths}"
