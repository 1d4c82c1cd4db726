"""The load generator: a closed loop of C requests in flight, and when every event of theirs came.

Knows nothing about metrics, models or files; drives anything that keeps the `Backend` protocol. The
law: a request that fails is a record with `error`, never an exception; cancelling the run cancels
every request. All times are seconds on one monotonic clock whose zero is the start of the run. In a
closed loop a request is scheduled when a slot becomes free.
"""

import asyncio
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from datetime import UTC, datetime

from llmopt.backends.protocol import Backend, GenerationParams
from llmopt.bench.client_monitor import ClientMonitor
from llmopt.bench.failures import describe
from llmopt.bench.workload import RunPrompts
from llmopt.results.schema import LoadSpec, RequestRecord, RunRecord

IDLE_TIMEOUT_S = 600.0  # a stream that is silent for so long is given up


async def run_load(
    backend: Backend,
    load: LoadSpec,
    prompts: RunPrompts,
    *,
    repeat: int,
    seed: int,
    idle_timeout_s: float = IDLE_TIMEOUT_S,
    clock: Callable[[], float] = time.perf_counter,
    on_request: Callable[[int], None] | None = None,
) -> RunRecord:
    """Warm the started `backend` up, then serve the measured prompts at `load.concurrency`.

    `on_request` hears how many measured requests have ended.
    """
    params = GenerationParams(max_tokens=load.output_tokens, seed=seed)
    loop = _ClosedLoop(backend, params, load.concurrency, idle_timeout_s, clock)
    warm = await loop.serve(prompts.warmup, "warmup", on_request=None)
    before = backend.stats()
    loop = _ClosedLoop(backend, params, load.concurrency, idle_timeout_s, clock)
    started_at = datetime.now(UTC).isoformat(timespec="milliseconds")
    records = await loop.serve(prompts.measured, "request", on_request)
    duration_s = loop.now()
    return RunRecord(
        repeat=repeat,
        started_at=started_at,
        seed=seed,
        duration_s=duration_s,
        requests=records,
        step_stats=_difference(before, backend.stats()) | loop.monitor.stats(),
        num_warmup_requests=sum(record.error is None for record in warm),
        max_client_lag_s=loop.monitor.max_lag_s,
    )


@dataclass(slots=True)
class _Stream:
    """What has been seen of one request."""

    request_id: str
    num_prompt_tokens: int
    scheduled_s: float
    sent_s: float
    times_s: list[float] = field(default_factory=list)
    counts: list[int] = field(default_factory=list)
    finish_reason: str | None = None
    error: str | None = None
    num_preemptions: int = 0

    def record(self, done_s: float | None) -> RequestRecord:
        """Freeze it."""
        return RequestRecord(
            request_id=self.request_id,
            num_prompt_tokens=self.num_prompt_tokens,
            num_output_tokens=sum(self.counts),
            scheduled_s=self.scheduled_s,
            sent_s=self.sent_s,
            first_token_s=self.times_s[0] if self.times_s else None,
            last_token_s=self.times_s[-1] if self.times_s else None,
            done_s=done_s,
            token_times_s=tuple(self.times_s),
            token_counts=tuple(self.counts),
            finish_reason=self.finish_reason,
            error=self.error,
            num_preemptions=self.num_preemptions,
        )


class _ClosedLoop:
    """C workers that share one list of prompts; its clock starts at zero when it is made."""

    def __init__(
        self,
        backend: Backend,
        params: GenerationParams,
        concurrency: int,
        idle_timeout_s: float,
        clock: Callable[[], float],
    ) -> None:
        self._backend = backend
        self._params = params
        self._concurrency = concurrency
        self._idle_timeout_s = idle_timeout_s
        self._clock = clock
        self._start_s = clock()
        self.monitor = ClientMonitor(clock)

    def now(self) -> float:
        """Seconds since the start of the run."""
        return self._clock() - self._start_s

    async def serve(
        self,
        prompts: Sequence[tuple[int, ...]],
        name: str,
        on_request: Callable[[int], None] | None,
    ) -> tuple[RequestRecord, ...]:
        """Serve all prompts; records come in the order of the prompts."""
        records: dict[int, RequestRecord] = {}
        queue = iter(enumerate(prompts))

        async def work(queue: Iterator[tuple[int, tuple[int, ...]]]) -> None:
            for index, prompt in queue:
                records[index] = await self._request(f"{name}-{index}", prompt)
                if on_request is not None:
                    on_request(len(records))

        async with asyncio.TaskGroup() as watching:
            watcher = watching.create_task(self.monitor.watch())
            async with asyncio.TaskGroup() as workers:
                for _ in range(min(self._concurrency, len(prompts))):
                    workers.create_task(work(queue))
            watcher.cancel()
        return tuple(records[index] for index in range(len(prompts)))

    async def _request(self, request_id: str, prompt: tuple[int, ...]) -> RequestRecord:
        scheduled_s = self.now()
        with self.monitor.request():
            stream = _Stream(request_id, len(prompt), scheduled_s, sent_s=self.now())
            try:
                async with asyncio.timeout(self._idle_timeout_s) as idle:
                    await self._consume(prompt, stream, idle)
            except Exception as error:
                stream.error = self._describe(error, idle)
                return stream.record(done_s=None)
            return stream.record(done_s=self.now())

    async def _consume(
        self, prompt: tuple[int, ...], stream: _Stream, idle: asyncio.Timeout
    ) -> None:
        clock_of_timeouts = asyncio.get_running_loop().time
        async with aclosing(self._backend.stream(prompt, self._params)) as events:
            async for event in events:
                if event.num_tokens > 0:
                    stream.times_s.append(self.now())
                    stream.counts.append(event.num_tokens)
                stream.finish_reason = event.finish_reason or stream.finish_reason
                stream.num_preemptions = event.num_preemptions
                if event.num_prompt_tokens is not None:
                    stream.num_prompt_tokens = event.num_prompt_tokens
                idle.reschedule(clock_of_timeouts() + self._idle_timeout_s)
        if not stream.counts:
            stream.error = "the stream ended without a token"

    def _describe(self, error: Exception, idle: asyncio.Timeout) -> str:
        if idle.expired():
            return f"the stream was silent for {self._idle_timeout_s:g} s"
        return describe(error)


def _difference(before: dict[str, float], after: dict[str, float]) -> dict[str, float]:
    """Counters over the run; a `peak_` is the peak since the backend started."""
    return {
        name: value if name.startswith("peak_") else value - before.get(name, 0)
        for name, value in after.items()
    }
