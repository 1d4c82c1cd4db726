"""How a run goes on, in words for whoever watches: requests done, and how fast they come.

Knows nothing about terminals. The law: it reports, and changes nothing.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass, field

from llmopt.bench.observer import Observer
from llmopt.results.schema import ProbeRecord

_MAX_LINE = 60  # characters of what a runtime says while it starts
USUAL_PROBES = 12  # of a search for a rate: up, down to neighbours, and both of them again


@dataclass(slots=True)
class RunProgress:
    """Tells an observer about the requests of one run of a stage of `total` requests."""

    observer: Observer
    before: int  # requests of the stage that were done before this run
    total: int
    detail: str
    clock: Callable[[], float] = time.perf_counter
    _started_s: float = field(init=False)

    def __post_init__(self) -> None:
        self._started_s = self.clock()
        self.observer.stage_advanced(self.before, self.total, self.detail)

    def __call__(self, served: int) -> None:
        """`served` requests of this run have ended."""
        elapsed_s = max(self.clock() - self._started_s, 1e-9)
        detail = f"{self.detail}, {served / elapsed_s:.3g} requests/s"
        self.observer.stage_advanced(min(self.before + served, self.total), self.total, detail)

    def waiting(self, waited_s: float, line: str) -> None:
        """Another runtime has been getting ready for so long, and says this."""
        detail = f"{self.detail}, starting for {waited_s:.0f} s: {line[:_MAX_LINE]}"
        self.observer.stage_advanced(self.before, self.total, detail)


@dataclass(slots=True)
class SearchProgress:
    """Tells an observer about the probes of a search for a rate."""

    observer: Observer
    _num_probes: int = 0

    def __call__(self, probe: ProbeRecord) -> None:
        """A rate was tried, or tried again."""
        self._num_probes += 1
        total = max(USUAL_PROBES, self._num_probes + 1)
        verdict = "holds" if probe.holds else "fails"
        detail = f"{probe.rate:.3g} requests/s {verdict} in {probe.num_requests} requests"
        self.observer.stage_advanced(self._num_probes, total, detail)
