"""How a run goes on, in words for whoever watches: requests done, and how fast they come.

Knows nothing about terminals. The law: it reports, and changes nothing.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass, field

from llmopt.bench.observer import Observer


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
