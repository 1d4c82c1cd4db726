"""The highest rate at which an SLO holds: up in doublings, then between two rates by halving.

Knows nothing about models or runs: a probe is a function from a rate to what was seen there. The
laws: the rate that is returned was itself measured and held; every probe is kept, so that the
answer can be argued with; rates are of a fixed series, so that two searches try the same ones.

Machines and queues are noisy, and a probe near the limit may fall on either side. So both ends of
the last bracket are measured again, for as long as their rounds disagree, and judged by all of
their runs; an end that then falls on the other side moves the bracket.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field

from llmopt.results.schema import ProbeRecord, SearchRecord

STEPS_PER_DECADE = 96  # the E96 series of preferred numbers (IEC 60063), 2.4 % apart
STRIDE = 32  # steps, a factor of 2.15: what is halved until the two rates are neighbours
MAX_CLIMBS = 12
MAX_DESCENTS = 4  # at 1/20 of the rate of requests one by one, none waits for another
AGREEING_ROUNDS = 3  # of runs that decide on an end of the last bracket if they agree
MAX_ROUNDS = 6  # if they do not

Measure = Callable[[float, int], ProbeRecord]


def rate_at(step: int) -> float:
    """The rate of a step of the series: 0 is 1 request per second, 96 is 10."""
    decade, place = divmod(step, STEPS_PER_DECADE)
    return float(f"{10 ** (place / STEPS_PER_DECADE):.2f}e{decade}")


def step_of(rate: float) -> int:
    """The step whose rate is nearest."""
    assert rate > 0, "a rate is positive"
    return round(STEPS_PER_DECADE * math.log10(rate))


def search_rate(
    measure: Measure,
    start_rate: float,
    *,
    on_probe: Callable[[ProbeRecord], None] | None = None,
) -> SearchRecord:
    """Search from `start_rate` on, best the rate of requests that are served one by one.

    `measure(rate, rounds)` gives what was seen in so many rounds of runs at the rate, those of an
    earlier call for the rate among them; of one round, as much as it takes to be sure. It needs
    that what holds at a rate holds at a lower one, up to noise; it should use the same lengths and
    gaps for all rates and rounds.
    """
    search = _Search(measure, on_probe)
    low, high = search.bracket(step_of(start_rate))
    while low is not None and high is not None:
        low, high = search.narrow(low, high)
        if search.confirm(low) and not search.confirm(high):
            break
        low, high = search.bracket_again(low, high)
    return SearchRecord(
        rate=None if low is None else rate_at(low),
        failing_rate=None if high is None or low is None else rate_at(high),
        start_rate=start_rate,
        probes=tuple(search.probes.values()),
    )


@dataclass(slots=True)
class _Search:
    """What was seen so far, by step."""

    measure: Measure
    on_probe: Callable[[ProbeRecord], None] | None
    probes: dict[int, ProbeRecord] = field(default_factory=dict)
    confirmed: set[int] = field(default_factory=set)

    def holds(self, step: int) -> bool:
        """Whether the rate of a step holds, measured if it was not."""
        if step not in self.probes:
            self._probe(step, 1)
        return self.probes[step].holds

    def confirm(self, step: int) -> bool:
        """Whether it holds over more runs, which is the last word on it."""
        if step not in self.confirmed:
            self._probe(step, AGREEING_ROUNDS)
            if len(set(self.probes[step].rounds_held)) > 1:
                self._probe(step, MAX_ROUNDS)
            self.confirmed.add(step)
        return self.probes[step].holds

    def bracket(self, step: int) -> tuple[int | None, int | None]:
        """A step that holds and one above that does not; None for one that was not found."""
        if not self.holds(step):
            return self._descend(step)
        return self._climb(step)

    def narrow(self, low: int, high: int) -> tuple[int, int]:
        """The bracket halved down to neighbours."""
        while high - low > 1:
            middle = (low + high) // 2
            if self.holds(middle):
                low = middle
            else:
                high = middle
        return low, high

    def bracket_again(self, low: int, high: int) -> tuple[int | None, int | None]:
        """After an end of the bracket has fallen on the other side: the nearest one around it."""
        if not self.probes[low].holds:
            below = [step for step, probe in self.probes.items() if step < low and probe.holds]
            return (max(below), low) if below else self._descend(low)
        above = [step for step, probe in self.probes.items() if step > high and not probe.holds]
        return (high, min(above)) if above else self._climb(high)

    def _probe(self, step: int, rounds: int) -> None:
        self.probes[step] = self.measure(rate_at(step), rounds)
        if self.on_probe is not None:
            self.on_probe(self.probes[step])

    def _climb(self, step: int) -> tuple[int, int | None]:
        for _ in range(MAX_CLIMBS):
            if not self.holds(step + STRIDE):
                return step, step + STRIDE
            step += STRIDE
        return step, None

    def _descend(self, step: int) -> tuple[int | None, int]:
        for _ in range(MAX_DESCENTS):
            if self.holds(step - STRIDE):
                return step - STRIDE, step
            step -= STRIDE
        return None, step
