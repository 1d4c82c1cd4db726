"""Which cell of a column is best, where the data can tell.

Knows nothing about text. The law: the best of comparable rows is marked only if its interval ends
before that of every other row begins; exact values must differ visibly; a value without an
interval, such as one of a single run, is never marked, and while it is in the running nothing else
is.
"""

from collections.abc import Iterator, Sequence

from llmopt.report.measures import MEASURES, OF_QUALITY, Direction, Estimate, Measure
from llmopt.report.rows import Row

SHOWN = 0.0025  # of an exact value: half of what three digits show at least
Mark = tuple[int, str]  # number of the row, name of the column


def best_cells(rows: Sequence[Row], columns: Sequence[str]) -> frozenset[Mark]:
    """The best cell of each of these columns, among rows under one load."""
    return frozenset(
        (index, name)
        for name in columns
        if name in MEASURES and MEASURES[name].better is not None
        for index in _best(rows, MEASURES[name])
    )


def is_surely_better(one: Estimate, other: Estimate, better: Direction) -> bool:
    """Whether the intervals say that one is better, or exact values differ by a visible amount."""
    ours, theirs = _ends(one), _ends(other)
    if ours is None or theirs is None:
        return False
    return ours[0] > theirs[1] if better == "higher" else ours[1] < theirs[0]


def _best(rows: Sequence[Row], measure: Measure) -> Iterator[int]:
    groups: dict[tuple[object, ...], list[tuple[int, Estimate]]] = {}
    for index, row in enumerate(rows):
        estimate = measure.of(row) if row.status == "ok" else None
        if estimate is not None:
            key = _comparable(row, measure.name)
            groups.setdefault(key, []).append((index, estimate))
    assert measure.better is not None, "best_cells leaves the others out"
    sign = 1 if measure.better == "higher" else -1
    for members in groups.values():
        if len(members) < 2:
            continue
        index, first = max(members, key=lambda member: sign * member[1].value)
        others = [estimate for other, estimate in members if other != index]
        if all(is_surely_better(first, other, measure.better) for other in others):
            yield index


def _comparable(row: Row, name: str) -> tuple[object, ...]:
    """What rows must have in common to be compared in a column."""
    quality = row.quality
    model = row.model.name if row.model else None
    if name not in OF_QUALITY or quality is None:
        return (row.load, model)
    text = (quality.text_sha256, quality.protocol, quality.num_tokens, quality.source)
    return (row.load, model, quality.base_scheme, *text, quality.lower_bound)


def _ends(estimate: Estimate) -> tuple[float, float] | None:
    if not estimate.is_exact:
        return estimate.interval
    margin = SHOWN * abs(estimate.value)
    return estimate.value - margin, estimate.value + margin
