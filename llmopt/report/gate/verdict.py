"""The verdict: every rule in every cell, corrected for being many, and one word for all.

Knows nothing about files or formats. The law (see `equivalence`): of a gate in which nothing
changed, at most 5 % find a regression; PASS is said only of what was shown.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from llmopt.errors import ResultError, UsageError
from llmopt.report.gate.equivalence import (
    adjusted,
    further_units,
    is_equivalent,
    is_regression,
)
from llmopt.report.gate.evidence import Context, Evidence, collect
from llmopt.report.gate.machine import require_same_machine
from llmopt.report.gate.matching import CellPair, Matched, match
from llmopt.report.gate.metrics import NO_BASELINE
from llmopt.report.gate.noise_floor import LearnedNoise
from llmopt.report.gate.rules import Rule, Rules
from llmopt.results.schema import CellResult

Word = Literal["PASS", "REGRESSED", "INCONCLUSIVE"]

EXIT_CODES: dict[Word, int] = {"PASS": 0, "REGRESSED": 1, "INCONCLUSIVE": 3}
_OF_SERVING = frozenset({"requests-served", "output-length", "finish-reasons", "token-counts"})


@dataclass(frozen=True, slots=True)
class Row:
    """One rule in one cell, a cell as a whole (`metric` "cell"), or a check of how it was served.

    change, low, high: for the worse, as shares of the baseline's value
    adjusted_p: of the change, corrected for all comparisons of the gate; None: chance has no part
    further: how many more of `unit` would decide; None: decided, or none that can be told
    """

    cell_id: str
    metric: str
    verdict: Word
    reason: str
    before: float | None = None
    after: float | None = None
    change: float | None = None
    low: float | None = None
    high: float | None = None
    tolerance: float | None = None
    adjusted_p: float | None = None
    further: int | None = None
    unit: str = ""
    is_higher_better: bool = False


@dataclass(frozen=True, slots=True)
class GateReport:
    """The verdict and everything that it follows from."""

    verdict: Word
    rows: tuple[Row, ...]
    notes: tuple[str, ...]

    @property
    def exit_code(self) -> int:
        """What a process says of it: 0, 1 or 3."""
        return EXIT_CODES[self.verdict]

    def count(self, word: Word) -> int:
        """How many rows have this verdict."""
        return sum(row.verdict == word for row in self.rows)


def judge(
    old: Iterable[CellResult],
    new: Iterable[CellResult],
    rules: Rules,
    *,
    noise: LearnedNoise | None = None,
    relative_to: str | None = None,
) -> GateReport:
    """Compare new results with their baseline.

    Raises ResultError if they have no cell in common; UsageError if they are of different machines
    and there is no reference cell, or it is not in both, or if `noise` is of another machine.
    """
    matched = match(old, new)
    if not matched.pairs:
        raise ResultError(
            "the new results and the baseline have no cell in common",
            "Compare results of one recipe; cells are matched by their ids.",
        )
    reference = None if relative_to is None else _reference(matched, relative_to)
    if reference is None:
        require_same_machine(matched.pairs)
    if noise is not None:
        _require_noise_of(noise, matched.pairs)
    rows = [_failure(pair.new) for pair in matched.pairs if pair.new.error and not pair.old.error]
    rows += [row for pair in matched.pairs for row in _served_worse(pair)]
    rows += [
        Row(name, "cell", "INCONCLUSIVE", "not among the new results") for name in matched.only_old
    ]
    compared = [pair for pair in matched.pairs if pair.old.error is None and pair.new.error is None]
    evidence = _collect(compared, rules, Context(noise=noise, reference=reference))
    rows += _rows([(each, rule) for each, rule in evidence if each.problem != NO_BASELINE])
    if not rows:
        raise UsageError(
            "no rule is about anything that the results have", "Give rules for their metrics."
        )
    notes = [
        f"{each.cell_id} has no baseline for {rule.metric}"
        for each, rule in evidence
        if each.problem == NO_BASELINE
    ]
    notes += _notes(matched, noise, reference)
    return GateReport(_overall(rows), tuple(rows), tuple(notes))


def _collect(
    pairs: Sequence[CellPair], rules: Rules, context: Context
) -> list[tuple[Evidence, Rule]]:
    chosen = [
        (rule, pair) for pair in pairs for rule in rules.rules if rule.holds_for(pair.cell_id)
    ]
    context = replace(context, num_tests=max(1, len(chosen)))
    found = [collect(rule, pair, context) for rule, pair in chosen]
    return [(each, rule) for each, (rule, _) in zip(found, chosen, strict=True) if each]


def _rows(evidence: Sequence[tuple[Evidence, Rule]]) -> list[Row]:
    """The rows, with the p-values corrected for all of them."""
    chance = [each.change for each, _ in evidence if not each.change.is_exact and not each.problem]
    corrected = iter(adjusted([change.p_value for change in chance]))
    rows = []
    for each, rule in evidence:
        if each.problem:
            rows.append(Row(each.cell_id, rule.metric, "INCONCLUSIVE", each.problem))
        else:
            p = None if each.change.is_exact else next(corrected)
            rows.append(_row(each, rule, p, len(chance)))
    return rows


def _row(evidence: Evidence, rule: Rule, adjusted_p: float | None, num_tests: int) -> Row:
    change, tolerance = evidence.change, evidence.tolerance
    further: int | None = None
    verdict: Word
    if is_regression(change, tolerance, change.p_value if adjusted_p is None else adjusted_p):
        verdict = "REGRESSED"
    elif is_equivalent(change, tolerance):
        verdict = "PASS"
    else:
        verdict = "INCONCLUSIVE"
        further = further_units(change, tolerance, num_tests)
    return Row(
        cell_id=evidence.cell_id,
        metric=rule.metric,
        verdict=verdict,
        reason=change.method,
        before=evidence.before,
        after=evidence.after,
        change=change.value,
        low=change.interval[0],
        high=change.interval[1],
        tolerance=tolerance,
        adjusted_p=adjusted_p,
        further=further,
        unit="windows" if evidence.metric.kind == "quality" else "runs of each side",
        is_higher_better=evidence.metric.is_higher_better,
    )


def _failure(new: CellResult) -> Row:
    return Row(new.cell_id, "cell", "REGRESSED", f"failed: {new.error}")


def _served_worse(pair: CellPair) -> Iterable[Row]:
    """The checks of what was served that the baseline passed and the new result does not."""
    passed = {check.name for check in pair.old.validity if check.passed}
    for check in pair.new.validity:
        if check.name in _OF_SERVING and check.name in passed and not check.passed:
            yield Row(pair.cell_id, check.name, "REGRESSED", check.detail)


def _overall(rows: Sequence[Row]) -> Word:
    words = {row.verdict for row in rows}
    if "REGRESSED" in words:
        return "REGRESSED"
    return "INCONCLUSIVE" if "INCONCLUSIVE" in words else "PASS"


def _reference(matched: Matched, cell_id: str) -> CellPair:
    for pair in matched.pairs:
        if pair.cell_id == cell_id:
            return pair
    raise UsageError(
        f"the reference cell {cell_id} is not in both results",
        f"Name one of {', '.join(pair.cell_id for pair in matched.pairs)}.",
    )


def _require_noise_of(noise: LearnedNoise, pairs: Sequence[CellPair]) -> None:
    devices = dict.fromkeys(pair.new.environment.device for pair in pairs if pair.new.runs)
    for device in devices:
        if f", {device}, " not in f", {noise.machine}, ":
            raise UsageError(
                f"the noise was learned on {noise.machine}, and the results are of {device}",
                "Learn it there with llmopt gate --run RECIPE --aa N, or leave --noise out.",
            )


def _notes(
    matched: Matched, noise: LearnedNoise | None, reference: CellPair | None
) -> Iterable[str]:
    if matched.only_new:
        yield f"new cells without a baseline: {', '.join(matched.only_new)}"
    failed = [pair.cell_id for pair in matched.pairs if pair.old.error is not None]
    if failed:
        yield f"the baseline failed, so that nothing is compared: {', '.join(failed)}"
    if reference is not None:
        yield f"speeds are ratios to those of {reference.cell_id} in each of the two"
    is_apart = any(pair.new.runs and not pair.is_interleaved for pair in matched.pairs)
    if is_apart and noise is None:
        yield (
            "the two were not measured by turns, and a standard deviation of 3 % between sessions"
            " is assumed; `llmopt gate --run` measures by turns, `--noise` takes a learned value"
        )
    sides = [side.environment for pair in matched.pairs for side in (pair.old, pair.new)]
    if any(environment.git_dirty for environment in sides):
        yield "a side was measured with changes that were not committed"
