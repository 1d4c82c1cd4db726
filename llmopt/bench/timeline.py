"""What was in flight when: the concurrency of a run over time, and its steady window.

Knows nothing about metrics or backends; reads raw events only. A request is in flight from the
moment it was sent to the end of its stream (the last that was seen of it, if it failed).
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from llmopt.results.schema import RequestRecord, RunRecord


@dataclass(frozen=True, slots=True)
class Timeline:
    """`levels[i]` requests were in flight from `times_s[i]` to `times_s[i + 1]`."""

    times_s: tuple[float, ...]
    levels: tuple[int, ...]  # one fewer than the times

    @property
    def peak(self) -> int:
        """The most requests that were in flight at once."""
        return max(self.levels, default=0)

    def mean(self, duration_s: float) -> float:
        """Requests in flight, averaged over the whole run."""
        return sum(level * length for level, length in self._spans()) / duration_s

    def usual_level(self) -> int:
        """The median level, by time; 0 for a run of no length."""
        spans = sorted(self._spans())
        half, passed = sum(length for _, length in spans) / 2, 0.0
        for level, length in spans:
            passed += length
            if passed >= half:
                return level
        return 0

    def steady_window(self) -> tuple[float, float] | None:
        """From the first to the last moment at which the usual number of requests is in flight.

        Ramp and drain lie outside. None for a run of no length.
        """
        level = self.usual_level()
        at = [i for i, found in enumerate(self.levels) if found >= level]
        if not at or self.times_s[at[-1] + 1] <= self.times_s[at[0]]:
            return None
        return self.times_s[at[0]], self.times_s[at[-1] + 1]

    def _spans(self) -> Iterable[tuple[int, float]]:
        for level, start, end in zip(self.levels, self.times_s, self.times_s[1:], strict=False):
            yield level, end - start


def timeline(run: RunRecord) -> Timeline:
    """The requests in flight over the run."""
    return _levels([(request.sent_s, last_seen_s(request, run)) for request in run.requests])


def decoding(run: RunRecord) -> Timeline:
    """The requests between their first and last token over the run."""
    return _levels(
        [
            (request.first_token_s, request.last_token_s)
            for request in run.requests
            if request.first_token_s is not None and request.last_token_s is not None
        ]
    )


def last_seen_s(request: RequestRecord, run: RunRecord) -> float:
    """The end of the stream; of one that failed its last token, or the end of the run."""
    if request.done_s is not None:
        return request.done_s
    return run.duration_s if request.last_token_s is None else request.last_token_s


def _levels(spans: Sequence[tuple[float, float]]) -> Timeline:
    """Spans are half-open: who leaves at a moment is gone before the next one comes."""
    events = sorted([(start, 1) for start, _ in spans] + [(end, -1) for _, end in spans])
    times: list[float] = []
    levels: list[int] = []
    level = 0
    for at, change in events:
        level += change
        if times and times[-1] == at:
            levels[-1] = level
        else:
            times.append(at)
            levels.append(level)
    return Timeline(tuple(times), tuple(levels[:-1]))
