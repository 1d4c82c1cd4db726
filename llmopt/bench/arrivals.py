"""When the requests of an open loop are due.

Knows nothing about prompts or backends. The laws: the seed decides the times; a higher rate gives
the same times closer together, so that two rates are compared on the same luck.
"""

import numpy as np
from numpy.typing import NDArray

from llmopt.results.schema import LoadSpec

Times = NDArray[np.float64]


def arrival_times(load: LoadSpec, seed: tuple[int, ...]) -> list[float]:
    """Seconds from the start of the run, ascending, one for each of `load.num_requests`.

    constant: equal gaps, the first at 0. poisson: gaps exponential. gamma: gaps of the gamma
    distribution with shape `burstiness` and mean 1 / rate (so a coefficient of variation of
    1 / sqrt(burstiness)), as in vLLM's `--burstiness`, but not rescaled to an exact total. burst:
    all at 0. ramp: a Poisson process whose rate changes, given its number of requests: their places
    in the cumulative rate are then sorted uniform numbers (Kingman, Poisson Processes, 2.4).
    """
    rng = np.random.default_rng(seed)
    number, rate = load.num_requests, load.rate or 0.0
    if load.kind == "burst":
        return [0.0] * number
    assert rate > 0, f"a {load.kind} load has a rate"
    if load.kind == "ramp":
        places = np.sort(rng.uniform(size=number)) * number
        return _seconds(_ramp(places, load))
    if load.kind == "constant":
        return _seconds(np.arange(number) / rate)
    shape = 1.0
    if load.kind == "gamma":
        assert load.burstiness is not None, "a gamma load has a burstiness"
        shape = load.burstiness
    gaps = rng.standard_gamma(shape, number) / (shape * rate)
    return _seconds(np.cumsum(gaps))


def ramp_duration_s(num_requests: int, start_rate: float, rate: float) -> float:
    """How long a ramp takes to give so many requests, in steps of equal time or steadily."""
    return num_requests / ((start_rate + rate) / 2)


def _seconds(times: Times) -> list[float]:
    return [float(time_s) for time_s in times]


def _ramp(places: Times, load: LoadSpec) -> Times:
    """The times at which the cumulative rate reaches `places` (in requests)."""
    assert load.rate is not None, "a ramp ends at a rate"
    assert load.start_rate is not None, "a ramp begins at a rate"
    start, end = load.start_rate, load.rate
    duration_s = ramp_duration_s(load.num_requests, start, end)
    if load.num_steps is not None:
        step_s = duration_s / load.num_steps
        rates = np.linspace(start, end, load.num_steps)
        knots = np.concatenate(([0.0], np.cumsum(rates * step_s)))
        times: Times = np.interp(places, knots, np.arange(load.num_steps + 1) * step_s)
        return times
    slope = (end - start) / duration_s
    # start * t + slope / 2 * t^2 = place, in the form that stays exact for a slope of 0
    root: Times = np.sqrt(np.maximum(start * start + 2 * slope * places, 0.0))
    return 2 * places / (start + root)
