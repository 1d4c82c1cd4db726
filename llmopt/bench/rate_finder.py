"""The highest rate that keeps a load's SLO on a backend: the runs of a search, and their verdicts.

Knows nothing about sweeps or files. The laws: a rate is judged by the percentiles that the report
shows, over requests enough for them; the runs of a round have the same lengths and gaps at every
rate and in every round, but prompts of their own, which no cache has seen; a search that is
interrupted goes on from its runs, and comes to what it would have come to.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import replace

from llmopt.bench.goodput import goodput, is_met, term_ms
from llmopt.bench.percentiles import min_samples
from llmopt.bench.slo_search import search_rate
from llmopt.bench.workload_spec import LoadPlan
from llmopt.errors import UsageError
from llmopt.results.schema import (
    LoadSpec,
    ProbeRecord,
    ProbeRuns,
    RequestRecord,
    RunRecord,
    SearchJournal,
    SearchRecord,
    SloTerm,
)

MAX_BACKLOG_SHARE = 0.1  # of the requests: a longer queue at the last arrival only grows
NUM_ALONE = 4  # requests one by one, whose rate the search begins with
CLEAR_FACTOR = 2.0  # from a bound: so far off, the rest of a first round would not change it

Measure = Callable[[LoadPlan, int], RunRecord]


def find_rate(
    measure: Measure,
    load: LoadPlan,
    *,
    repeats: int,
    journal: SearchJournal | None = None,
    on_run: Callable[[SearchJournal], None] | None = None,
    on_probe: Callable[[ProbeRecord], None] | None = None,
) -> SearchRecord:
    """Search the rate; `measure(plan, repeat)` is one run, and raises what the search then raises.

    A round has `repeats` runs, or as many as the SLO's percentiles need. `journal` is what an
    interrupted search had; `on_run` hears what there is after each new run.
    """
    if journal is None:
        journal = SearchJournal(_rate_alone(measure, load))
        if on_run is not None:
            on_run(journal)
    kept = {probe.rate: list(probe.runs) for probe in journal.probes}
    per_round = runs_per_round(load, repeats)

    def probe(rate: float, rounds: int) -> ProbeRecord:
        runs = kept.setdefault(rate, [])
        used = 0
        while used < rounds * per_round:
            if rounds == 1 and _is_clear(runs[:used], load.spec, per_round):
                break
            if used == len(runs):
                variant = 1 + sum(map(len, kept.values()))
                runs.append(measure(load.at_rate(rate, variant), used % per_round))
                if on_run is not None:
                    on_run(_journal(journal.start_rate, kept))
            used += 1
        return judge(rate, runs[:used], load.spec, per_round)

    return search_rate(probe, journal.start_rate, on_probe=on_probe)


def require_rate(found: SearchRecord) -> float:
    """The rate that was found. Raises UsageError when no rate keeps the SLO, or every one does:
    what nothing was seen to exceed is no highest rate.
    """
    if found.rate is None:
        lowest = min(probe.rate for probe in found.probes)
        raise UsageError(
            f"no rate keeps the SLO, down to {lowest:.3g} requests/s",
            "Allow more time, or ask for shorter requests.",
        )
    if found.failing_rate is None:
        raise UsageError(
            f"every rate keeps the SLO, up to {found.rate:.3g} requests/s: there is no highest one",
            "Ask for more requests, so that a queue can grow, or for less time.",
        )
    return found.rate


def runs_per_round(load: LoadPlan, repeats: int) -> int:
    """Runs that decide on a rate: so many that every percentile of the SLO has an interval."""
    return max(repeats, math.ceil(_samples_needed(load.spec.slo) / load.spec.num_requests))


def judge(rate: float, runs: Sequence[RunRecord], load: LoadSpec, per_round: int) -> ProbeRecord:
    """What runs at a rate say about it.

    It holds if every bound does over the requests of all its runs, and most runs have no backlog: a
    backend that falls behind would break any bound, given time.
    """
    good = goodput(runs, load.slo)
    assert good is not None, "there is an SLO to keep"
    rounds = [runs[i : i + per_round] for i in range(0, len(runs) - per_round + 1, per_round)]
    return ProbeRecord(
        rate=rate,
        met=good.met,
        has_backlog=_falls_behind(runs, load),
        goodput=good.requests_per_s,
        num_runs=len(runs),
        num_requests=sum(len(run.requests) for run in runs),
        terms_ms=tuple(term_ms(runs, term) for term in load.slo),
        rounds_held=tuple(
            all(is_met(each, term) for term in load.slo) and not _falls_behind(each, load)
            for each in rounds
        ),
    )


def has_backlog(run: RunRecord, num_slots: int) -> bool:
    """Whether more requests were waiting at the last arrival than can be explained by luck: more
    than the `num_slots` that are served at a time, and a tenth of all.
    """
    last_s = max(request.scheduled_s for request in run.requests)
    waiting = sum(_end_s(request) > last_s for request in run.requests)
    return waiting > num_slots + MAX_BACKLOG_SHARE * len(run.requests)


def _falls_behind(runs: Sequence[RunRecord], load: LoadSpec) -> bool:
    """Whether most runs have a backlog."""
    return 2 * sum(has_backlog(run, load.concurrency) for run in runs) > len(runs)


def _is_clear(runs: Sequence[RunRecord], load: LoadSpec, per_round: int) -> bool:
    """Whether the verdict is sure before a first round is over: far on one side of the bounds."""
    if sum(len(run.requests) for run in runs) < _samples_needed(load.slo):
        return False
    shares = [term_ms(runs, term) / term.limit_ms for term in load.slo]
    num_behind = sum(has_backlog(run, load.concurrency) for run in runs)
    if max(shares) > CLEAR_FACTOR or 2 * num_behind > per_round:
        return True
    return max(shares) < 1 / CLEAR_FACTOR and num_behind == 0


def _samples_needed(slo: Sequence[SloTerm]) -> int:
    """Requests that give every percentile an interval."""
    percents = [term.percent for term in slo if term.percent is not None]
    return max(map(min_samples, percents), default=1)


def _rate_alone(measure: Measure, load: LoadPlan) -> float:
    """Requests per second when each is served alone."""
    number = min(NUM_ALONE, load.spec.num_requests)
    alone = replace(load.spec, kind="closed", concurrency=1, num_requests=number)
    return number / measure(replace(load, spec=alone), 0).duration_s


def _journal(start_rate: float, kept: dict[float, list[RunRecord]]) -> SearchJournal:
    return SearchJournal(
        start_rate, tuple(ProbeRuns(rate, tuple(runs)) for rate, runs in kept.items())
    )


def _end_s(request: RequestRecord) -> float:
    return math.inf if request.done_s is None else request.done_s
