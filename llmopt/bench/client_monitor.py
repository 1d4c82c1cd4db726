"""The client watching itself: how late its event loop is, how many requests it has in flight.

Knows nothing about requests beyond their number. The law: it observes independently of the
timestamps in the records, so that the two can be held against each other (Little's law), and so
that a slow client cannot pass for a slow backend.
"""

import asyncio
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from llmopt.bench.percentiles import percentile

TICK_S = 0.01


class ClientMonitor:
    """A ticker on the client's event loop, and the count of requests in flight."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._in_flight = 0
        self._lags_s: list[float] = []
        self._watched_s = 0.0
        self._in_flight_seconds = 0.0

    @contextmanager
    def request(self) -> Iterator[None]:
        """Count one request as in flight."""
        self._in_flight += 1
        try:
            yield
        finally:
            self._in_flight -= 1

    async def watch(self) -> None:
        """Tick until cancelled."""
        while True:
            before, in_flight = self._clock(), self._in_flight
            await asyncio.sleep(TICK_S)
            elapsed = self._clock() - before
            self._lags_s.append(max(elapsed - TICK_S, 0.0))
            self._watched_s += elapsed
            self._in_flight_seconds += elapsed * in_flight

    @property
    def max_lag_s(self) -> float | None:
        """The worst lateness of a tick."""
        return max(self._lags_s, default=None)

    def stats(self) -> dict[str, float]:
        """What was seen, as counters for the run's record; lags in seconds."""
        if not self._lags_s:
            return {"client_num_ticks": 0}
        lags = sorted(self._lags_s)
        return {
            "client_num_ticks": len(lags),
            "client_lag_p50_s": percentile(lags, 50),
            "client_lag_p99_s": percentile(lags, 99),
            "client_mean_in_flight": self._in_flight_seconds / self._watched_s,
        }
