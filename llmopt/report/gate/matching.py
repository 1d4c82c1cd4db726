"""Which result belongs to which: cells of the baseline and of the new results, by their ids.

Knows nothing about rules. The law: of several results of a cell the newest counts, of a baseline
the newest of the same runtime and machine if there is one; what has no partner is said, and not
dropped.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from llmopt.errors import ResultError
from llmopt.results.schema import CellResult


@dataclass(frozen=True, slots=True)
class CellPair:
    """One cell, before and after."""

    old: CellResult
    new: CellResult

    @property
    def cell_id(self) -> str:
        """The id that both have."""
        return self.new.cell_id

    @property
    def is_interleaved(self) -> bool:
        """Whether the runs were made by turns: the i-th of each side next to each other."""
        return interleaved(self.old, self.new)


@dataclass(frozen=True, slots=True)
class Matched:
    """Cells of both sides, and those of one side only. Of other recipes the baseline says nothing.

    The order of everything is that of the new results, then of the baseline.
    """

    pairs: tuple[CellPair, ...]
    only_old: tuple[str, ...]
    only_new: tuple[str, ...]


def match(old: Iterable[CellResult], new: Iterable[CellResult]) -> Matched:
    """Pair the newest results of each cell. Raises ResultError: a time that is none."""
    after = newest(new)
    recipes = {result.recipe_name for result in after.values()}
    known = [result for result in old if result.recipe_name in recipes]
    before = newest(known) | newest(
        result
        for result in known
        if (partner := after.get(result.cell_id)) is not None and _place(partner) == _place(result)
    )
    return Matched(
        tuple(CellPair(before[key], after[key]) for key in after if key in before),
        tuple(key for key in before if key not in after),
        tuple(key for key in after if key not in before),
    )


def _place(result: CellResult) -> tuple[object, ...]:
    """What ran it, and on what, as far as a baseline is chosen by it."""
    machine = result.environment
    return result.backend.name, machine.device, machine.cores, machine.num_threads


def newest(results: Iterable[CellResult]) -> dict[str, CellResult]:
    """The newest result of each cell, by id; of equally old ones the last."""
    found: dict[str, CellResult] = {}
    for result in results:
        other = found.get(result.cell_id)
        if other is None or made_at(result.created_at) >= made_at(other.created_at):
            found[result.cell_id] = result
    return found


def interleaved(old: CellResult, new: CellResult) -> bool:
    """Whether the runs of the two alternate, pair by pair, and there are at least two pairs.

    Two sessions, one after the other, never look so.
    """
    if len(old.runs) != len(new.runs) or len(old.runs) < 2:
        return False
    marked = [(made_at(run.started_at), "old") for run in old.runs]
    marked += [(made_at(run.started_at), "new") for run in new.runs]
    sides = [side for _, side in sorted(marked)]
    return all(first != second for first, second in _in_twos(sides))


def _in_twos(sides: Sequence[str]) -> Iterable[tuple[str, str]]:
    return zip(sides[::2], sides[1::2], strict=True)


def made_at(text: str) -> datetime:
    """The time that a result says; UTC if it does not say of which zone. Raises ResultError."""
    try:
        time = datetime.fromisoformat(text)
    except ValueError:
        raise ResultError(f"{text!r} in a result is no time", "Leave that file out.") from None
    return time if time.tzinfo is not None else time.replace(tzinfo=UTC)
