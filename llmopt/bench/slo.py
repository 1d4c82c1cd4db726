"""Service level objectives as text: "ttft_p95<500ms,tpot_p95<50ms".

Knows nothing about measuring. The law: `format_slo(parse_slo(text))` says the same as the text.
"""

import re
from collections.abc import Iterator, Sequence
from typing import get_args

from llmopt.errors import UsageError
from llmopt.recipe.check import Problem
from llmopt.recipe.schema import Recipe
from llmopt.results.schema import SloMetric, SloTerm

METRICS: tuple[SloMetric, ...] = get_args(SloMetric)

_TERM = re.compile(
    r"(?P<metric>[a-z0-9]+)(?:_p(?P<percent>\d+(?:\.\d+)?))?\s*<=?\s*"
    r"(?P<limit>\d+(?:\.\d+)?)\s*(?P<unit>ms|s)"
)


def parse_slo(text: str) -> tuple[SloTerm, ...]:
    """Read bounds that are all to be kept.

    A term is a metric (ttft, tpot, itl, e2e), a percentile if not every request must keep it, and a
    limit in ms or s. Raises UsageError.
    """
    terms = tuple(_parse_term(part.strip()) for part in text.split(","))
    names = [(term.metric, term.percent) for term in terms]
    if len(set(names)) < len(names):
        raise UsageError(f"the SLO {text!r} bounds one thing twice", "Remove one of the bounds.")
    return terms


def format_slo(terms: Sequence[SloTerm]) -> str:
    """The text of the bounds."""
    return ",".join(
        f"{term.metric}{'' if term.percent is None else f'_p{term.percent:g}'}<{term.limit_ms:g}ms"
        for term in terms
    )


def slo_problems(recipe: Recipe) -> Iterator[Problem]:
    """Yield what is wrong with the SLOs of a recipe (a rule for `load_recipe`)."""
    for index, load in enumerate(recipe.loads):
        if load.slo is not None:
            try:
                parse_slo(load.slo)
            except UsageError as error:
                yield Problem(("loads", index, "slo"), error.message, error.remedy)


def _parse_term(text: str) -> SloTerm:
    found = _TERM.fullmatch(text)
    metric = next((name for name in METRICS if found and name == found["metric"]), None)
    if found is None or metric is None:
        raise UsageError(
            f"{text!r} is no bound on a latency",
            f"Write such as ttft_p95<500ms, with {', '.join(METRICS)} and ms or s.",
        )
    limit_ms = float(found["limit"]) * (1000 if found["unit"] == "s" else 1)
    percent = None if found["percent"] is None else float(found["percent"])
    if limit_ms == 0 or (percent is not None and not 0 < percent < 100):
        raise UsageError(
            f"no request can keep {text!r}", "Use a limit above 0, and a percentile from 1 to 99.9."
        )
    return SloTerm(metric, limit_ms, percent)
