"""Checks of time: warm-up, first requests, scatter and drift of the runs, the machine, the drain.

Knows nothing about lengths or clients; part of `llmopt.bench.validity`, whose law it keeps.
"""

from collections.abc import Sequence
from statistics import fmean, median, stdev

from llmopt.bench.latencies import tpot_s, ttft_sent_s
from llmopt.bench.metrics import drift
from llmopt.bench.timeline import timeline
from llmopt.results.schema import LoadSpec, RequestRecord, RunRecord, ValidityCheck

MAX_SPREAD = 0.10  # coefficient of variation above which a machine counts as noisy
LITTLE_TOLERANCE = 0.05
MIN_TICKS = 20  # fewer samples of the requests in flight decide nothing
MAX_FIRST_FACTOR = 3.0  # first request / the slowest of the others
NEGLIGIBLE_START_S = 0.005
MIN_OTHERS = 3
MAX_DRIFT = 0.05  # of the TPOT, from the first run to the last
SIGNIFICANT = 0.05
MAX_CLOCK_CHANGE = 0.10


def check_warmup(load: LoadSpec, runs: Sequence[RunRecord]) -> ValidityCheck:
    """Each run was preceded by the warm-up that was asked for."""
    fewest = min(run.num_warmup_requests for run in runs)
    detail = f"at least {fewest} of {load.warmup_requests} warm-up requests served before each run"
    return ValidityCheck("warm-up", fewest >= load.warmup_requests, detail)


def check_first_request(runs: Sequence[RunRecord]) -> ValidityCheck:
    """The measured part does not begin with a start: compiling, autotuning, loading a model.

    The first request's TTFT and TPOT against the slowest of the others; a single run may have bad
    luck, half of them may not. A first request that computes a prefix, which all others find in the
    cache, has a longer TTFT by right: that is not compared.
    """
    factors = []
    for run in runs:
        ordered = sorted((r for r in run.requests if r.error is None), key=lambda r: r.sent_s)
        for of in (tpot_s,) if _fills_the_cache(ordered) else (ttft_sent_s, tpot_s):
            values = [value for value in map(of, ordered) if value is not None]
            if len(values) <= MIN_OTHERS:
                continue
            slowest = max(values[1:])
            slow = values[0] - slowest > NEGLIGIBLE_START_S
            factors.append((values[0] / slowest if slow and slowest > 0 else 1.0, run.repeat))
    if not factors:
        return ValidityCheck("first-request", True, "too few requests to be observed")
    bad = {repeat for factor, repeat in factors if factor > MAX_FIRST_FACTOR}
    detail = f"slower than all others by a factor of {max(factors)[0]:.3g} at most"
    if bad:
        detail += f", above {MAX_FIRST_FACTOR:g} in {len(bad)} of {len(runs)} runs"
    return ValidityCheck("first-request", 2 * len(bad) < len(runs), detail)


def _fills_the_cache(ordered: Sequence[RequestRecord]) -> bool:
    """Whether the first request found less in the prefix cache than every other."""
    found = [request.num_cached_tokens or 0 for request in ordered]
    return len(found) > 1 and found[0] < min(found[1:])


def check_spread(runs: Sequence[RunRecord]) -> ValidityCheck:
    """How far the runs' TPOT scatters: a noisy machine is a warning in the detail, no failure."""
    values = [fmean(tpots) for run in runs if (tpots := _tpots(run))]
    if len(values) < 2:
        return ValidityCheck("spread", True, "one run: the spread between runs is unknown")
    if fmean(values) <= 0:
        return ValidityCheck("spread", True, "no TPOT above 0: the spread between runs is unknown")
    variation = stdev(values) / fmean(values)
    detail = f"TPOT varies by {variation:.1%} between {len(values)} runs"
    if variation > MAX_SPREAD:
        detail += f": above {MAX_SPREAD:.0%}, a noisy machine"
    return ValidityCheck("spread", True, detail)


def check_drift(runs: Sequence[RunRecord]) -> ValidityCheck:
    """The runs do not become slower or faster with time, as on a machine that heats up."""
    found = drift(runs)
    if found is None:
        return ValidityCheck("drift", True, "too few runs to show a trend")
    change = found.per_run * (len(runs) - 1)
    detail = f"TPOT changes by {change:+.1%} over the runs, p = {found.p_value:.2g}"
    drifts = found.p_value < SIGNIFICANT and abs(change) > MAX_DRIFT
    return ValidityCheck("drift", not drifts, detail)


def check_machine(runs: Sequence[RunRecord]) -> ValidityCheck:
    """The clocks held and nothing was throttled, where the machine says so."""
    states = [state for run in runs for state in (run.machine_before, run.machine_after) if state]
    clocks = [state.clock_mhz for state in states if state.clock_mhz is not None]
    throttled = sum(state.throttled is True for state in states)
    if not clocks and all(state.throttled is None for state in states):
        return ValidityCheck("machine", True, "clocks are not readable here")
    change = 1 - min(clocks) / max(clocks) if clocks else 0.0
    detail = f"clocks within {change:.1%}"
    temperatures = [state.temperature_c for state in states if state.temperature_c is not None]
    if temperatures:
        detail += f", {min(temperatures):.0f} to {max(temperatures):.0f} degrees C"
    if throttled:
        detail += f"; throttled in {throttled} of {len(states)} looks"
    return ValidityCheck("machine", not throttled and change <= MAX_CLOCK_CHANGE, detail)


def check_littles_law(runs: Sequence[RunRecord]) -> ValidityCheck:
    """L = lambda * W in every run (Little 1961).

    L, the mean number of requests in flight, was sampled by the client's ticker; lambda * W is the
    sum of the times between schedule and end / duration. The two are observed independently, so a
    lost request or a clock that jumps shows here.
    """
    deviations = []
    for run in runs:
        if run.step_stats.get("client_num_ticks", 0) < MIN_TICKS:
            continue
        if any(request.done_s is None for request in run.requests):
            continue
        sampled = run.step_stats["client_mean_in_flight"]
        times = [r.done_s - r.scheduled_s for r in run.requests if r.done_s is not None]
        deviations.append(abs(sampled / (sum(times) / run.duration_s) - 1))
    if not deviations:
        return ValidityCheck("littles-law", True, "too short to be observed")
    worst = max(deviations)
    detail = f"requests in flight deviate from arrival rate x time by at most {worst:.1%}"
    return ValidityCheck("littles-law", worst <= LITTLE_TOLERANCE, detail)


def check_steady_window(runs: Sequence[RunRecord]) -> ValidityCheck:
    """How much of the run is neither ramp nor drain: said, no failure."""
    windows = [(timeline(run).steady_window(), run.duration_s) for run in runs]
    shares = [(w[1] - w[0]) / length for w, length in windows if w is not None and length > 0]
    if not shares:
        return ValidityCheck("steady-window", True, "a run of no length has none")
    return ValidityCheck("steady-window", True, f"{median(shares):.0%} of the run, p50 of the runs")


def _tpots(run: RunRecord) -> list[float]:
    values = (tpot_s(request) for request in run.requests if request.error is None)
    return [value for value in values if value is not None]
