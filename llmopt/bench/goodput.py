"""Goodput: what was served within the bounds that its users need.

Knows nothing about searching for a load that keeps them. The law: a request that failed, or that
lacks a latency which a bound asks for, is not good (but one of a single token has no TPOT or ITL to
exceed), and all requests count in the share.
"""

import math
from collections.abc import Sequence
from statistics import fmean, median

from llmopt.bench.latencies import LATENCIES
from llmopt.bench.percentiles import percentile, percentile_interval
from llmopt.results.schema import Goodput, Interval, RequestRecord, RunRecord, SloTerm

_OF_LATER_TOKENS = {"tpot", "itl"}


def goodput(runs: Sequence[RunRecord], slo: Sequence[SloTerm]) -> Goodput | None:
    """Rates are medians over the runs, the share is of all of them; None without an SLO."""
    if not slo:
        return None
    good = [[request for request in run.requests if is_good(request, slo)] for run in runs]
    spans = [max(run.duration_s, 1e-9) for run in runs]
    num_requests = sum(len(run.requests) for run in runs)
    return Goodput(
        requests_per_s=median(len(kept) / span for kept, span in zip(good, spans, strict=True)),
        tokens_per_s=median(
            sum(request.num_output_tokens for request in kept) / span
            for kept, span in zip(good, spans, strict=True)
        ),
        share=sum(map(len, good)) / max(1, num_requests),
        met=all(is_met(runs, term) for term in slo),
    )


def is_good(request: RequestRecord, slo: Sequence[SloTerm]) -> bool:
    """Whether one request was served within every bound, percentile or not."""
    if request.error is not None:
        return False
    return all(value is not None and value <= t.limit_ms for t in slo for value in _ms(request, t))


def is_met(runs: Sequence[RunRecord], term: SloTerm) -> bool:
    """Whether the term holds: for its percentile, or for every request."""
    return term_ms(runs, term) <= term.limit_ms


def term_ms(runs: Sequence[RunRecord], term: SloTerm) -> float:
    """What a term bounds, in ms: the percentile that the report shows, or the worst request's.

    Samples are as in a summary: one per request, of an ITL one per token after the first. A
    request that failed is later than any bound, for each sample that it should have had. Infinite
    without a request, and 0 if none has such a latency to exceed.
    """
    values = _ordered_ms(runs, term)
    if not values:
        return 0.0 if any(run.requests for run in runs) else math.inf
    return _at(values, term.percent)


def term_interval(runs: Sequence[RunRecord], term: SloTerm, n_eff: float) -> Interval | None:
    """The 95 % interval of `term_ms`, in ms; None without one: too few samples, or no percentile.

    n_eff: how many independent samples those of the runs are worth
    """
    if term.percent is None:
        return None
    return percentile_interval(_ordered_ms(runs, term), term.percent, n_eff)


def _ordered_ms(runs: Sequence[RunRecord], term: SloTerm) -> list[float]:
    samples = _tokens_ms if term.metric == "itl" and term.percent is not None else _request_ms
    return sorted(
        value for run in runs for request in run.requests for value in samples(request, term)
    )


def _request_ms(request: RequestRecord, term: SloTerm) -> list[float]:
    """One sample; none of a request that has no such latency to exceed."""
    found = [None] if request.error is not None else _ms(request, term)
    return [math.inf if value is None else value for value in found]


def _tokens_ms(request: RequestRecord, term: SloTerm) -> list[float]:
    """One sample per token after the first event."""
    if request.error is None and request.token_times_s:
        return [1000 * value for value in LATENCIES[term.metric](request)]
    return [math.inf] * max(1, (request.max_tokens or 1) - 1)


def _at(ordered: Sequence[float], percent: float | None) -> float:
    """The percentile, or the largest; an infinite neighbour makes it infinite, never NaN."""
    if percent is None:
        return ordered[-1]
    position = (len(ordered) - 1) * percent / 100
    above = ordered[math.ceil(position)]
    if math.isinf(above) or position.is_integer():
        return above
    return percentile(ordered, percent)


def _ms(request: RequestRecord, term: SloTerm) -> list[float | None]:
    """The latency of a term, one or none; an ITL is the mean of the request's."""
    values = list(LATENCIES[term.metric](request))
    if not values and term.metric in _OF_LATER_TOKENS and request.num_output_tokens == 1:
        return []
    return [1000 * fmean(values)] if values else [None]
