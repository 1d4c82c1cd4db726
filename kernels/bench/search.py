"""The fastest of many launch configurations, without measuring all of them.

Knows nothing of kernels. The law: the result is never slower than the default, by what was
measured, and no configuration is measured twice.

A spread of the candidates is measured first; from the best of them and the default, one parameter
is changed at a time for as long as that helps.
"""

from collections.abc import Callable, Iterator, Sequence

from llmopt_kernels.tuning import Config

Cost = Callable[[Config], float | None]  # seconds; None: it cannot be launched
_NUM_SPREAD = 8


def search(
    default: Config, candidates: Sequence[Config], cost: Cost, *, limit: int
) -> tuple[Config, float | None]:
    """The best configuration found, and its cost; at most `limit` are measured."""
    known: dict[tuple[tuple[str, int], ...], float | None] = {}

    def measured(config: Config) -> float | None:
        key = tuple(sorted(config.items()))
        if key not in known and len(known) < limit:
            known[key] = cost(config)
        return known.get(key)

    best, best_cost = default, measured(default)
    for config in candidates[:: max(1, len(candidates) // _NUM_SPREAD)]:
        best, best_cost = _better((best, best_cost), (config, measured(config)))
    while True:
        here = best
        for config in _neighbours(here, candidates):
            best, best_cost = _better((best, best_cost), (config, measured(config)))
        if best == here:
            return best, best_cost


def _better(
    first: tuple[Config, float | None], second: tuple[Config, float | None]
) -> tuple[Config, float | None]:
    """The faster; the first of equal ones."""
    if second[1] is None:
        return first
    return second if first[1] is None or second[1] < first[1] else first


def _neighbours(config: Config, candidates: Sequence[Config]) -> Iterator[Config]:
    for other in candidates:
        if other.keys() == config.keys() and _distance(config, other) == 1:
            yield other


def _distance(first: Config, second: Config) -> int:
    return sum(first[name] != second[name] for name in first)
