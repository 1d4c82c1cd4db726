"""The highest rate at which an SLO holds: up in doublings, then between the two by halving.

Knows nothing about models: a probe is a function from a rate to the runs at that rate. The law: the
rate that is returned was itself measured and held; every probe is kept, so that the answer can be
argued with.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from llmopt.bench.goodput import goodput
from llmopt.results.schema import RequestRecord, RunRecord, SloTerm

TOLERANCE = 0.05  # of the rate: how near to a rate that fails the found one is
MAX_DOUBLINGS = 12
MAX_HALVINGS = 4  # at a sixteenth of the rate of requests one by one, none waits for another
MAX_BACKLOG_SHARE = 0.1  # of the requests: a longer queue at the last arrival only grows


@dataclass(frozen=True, slots=True)
class Probe:
    """One rate that was tried. Rates in requests per second."""

    rate: float
    met: bool
    goodput: float  # requests per second that were served within every bound
    has_backlog: bool  # requests came faster than they were served

    @property
    def holds(self) -> bool:
        """Whether the rate can be sustained within the bounds."""
        return self.met and not self.has_backlog


@dataclass(frozen=True, slots=True)
class RateSearch:
    """What was found. `rate` None: no rate that was tried keeps the SLO; `is_bounded`: a higher one
    was seen to fail, so that `rate` is a limit and not just the last that was tried.
    """

    rate: float | None
    is_bounded: bool
    probes: tuple[Probe, ...]


def search_rate(
    measure: Callable[[float], Sequence[RunRecord]],
    slo: Sequence[SloTerm],
    *,
    first_rate: float,
    num_slots: int,
    tolerance: float = TOLERANCE,
    on_probe: Callable[[Probe], None] | None = None,
) -> RateSearch:
    """Search from `first_rate` on, best the rate of requests that are served one by one.

    A rate holds if every bound does over the requests of all its runs, and the queue at the last
    arrival is no longer than the `num_slots` that are served at a time and a tenth of the requests:
    a backend that falls behind would break any bound, given time. The halving is geometric and ends
    when the two rates are within `tolerance` of each other. It needs that what holds at a rate
    holds at a lower one, which noise may break near the limit: `measure` should use the same
    prompts and gaps for all rates, and requests enough for the percentile.
    """
    assert first_rate > 0, "a rate is positive"
    assert slo, "there is something to keep"
    probes: list[Probe] = []

    def holds(rate: float) -> bool:
        probe = _probe(rate, measure(rate), slo, num_slots)
        probes.append(probe)
        if on_probe is not None:
            on_probe(probe)
        return probe.holds

    good, bad = _bracket(holds, first_rate)
    while good is not None and bad is not None and bad / good > 1 + tolerance:
        middle = math.sqrt(good * bad)
        if holds(middle):
            good = middle
        else:
            bad = middle
    return RateSearch(good, good is not None and bad is not None, tuple(probes))


def has_backlog(run: RunRecord, num_slots: int) -> bool:
    """Whether more requests were waiting at the last arrival than can be explained by luck."""
    last_s = max(request.scheduled_s for request in run.requests)
    waiting = sum(_end_s(request) > last_s for request in run.requests)
    return waiting > num_slots + MAX_BACKLOG_SHARE * len(run.requests)


def _bracket(
    holds: Callable[[float], bool], first_rate: float
) -> tuple[float | None, float | None]:
    """A rate that holds and twice it, which does not; None for one that was not found."""
    rate = first_rate
    if holds(rate):
        for _ in range(MAX_DOUBLINGS):
            if not holds(2 * rate):
                return rate, 2 * rate
            rate *= 2
        return rate, None
    for _ in range(MAX_HALVINGS):
        rate /= 2
        if holds(rate):
            return rate, 2 * rate
    return None, rate


def _probe(rate: float, runs: Sequence[RunRecord], slo: Sequence[SloTerm], num_slots: int) -> Probe:
    good = goodput(runs, slo)
    assert good is not None, "there is an SLO"
    backlog = any(has_backlog(run, num_slots) for run in runs)
    return Probe(rate, good.met, good.requests_per_s, backlog)


def _end_s(request: RequestRecord) -> float:
    return math.inf if request.done_s is None else request.done_s
