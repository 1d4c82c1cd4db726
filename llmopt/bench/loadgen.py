"""The load generator: sends what is planned, when it is planned, and notes when every event came.

Knows nothing about metrics, models or files; drives anything that keeps the `Backend` protocol. The
laws: a request that fails is a record with `error`, never an exception; cancelling the run cancels
every request; an open loop never waits for an answer before it sends what is due. All times are
seconds on one monotonic clock whose zero is the start of the run. In a closed loop a request is
scheduled when a slot becomes free, and a later turn when the one before is done and thought over.
"""

import asyncio
import time
from collections.abc import Callable, Sequence
from contextlib import aclosing
from datetime import UTC, datetime

from llmopt.backends.protocol import Backend, GenerationParams
from llmopt.bench.client_monitor import ClientMonitor
from llmopt.bench.failures import describe
from llmopt.bench.stream_record import StreamRecord
from llmopt.bench.workload import PlannedRequest, RunPlan, sessions
from llmopt.results.schema import RequestRecord, RunRecord

IDLE_TIMEOUT_S = 600.0  # a stream that is silent for so long is given up

_Session = Sequence[tuple[int, PlannedRequest]]  # requests with their indices, one after the other


async def run_load(
    backend: Backend,
    plan: RunPlan,
    *,
    repeat: int,
    seed: int,
    idle_timeout_s: float = IDLE_TIMEOUT_S,
    clock: Callable[[], float] = time.perf_counter,
    on_warm: Callable[[], None] | None = None,
    on_request: Callable[[int], None] | None = None,
) -> RunRecord:
    """Warm the started `backend` up, `plan.concurrency` requests at a time, then run the plan.

    `on_warm` is called between the two; `on_request` hears how many measured requests have ended.
    """
    warming = _Client(backend, seed, idle_timeout_s, clock, "warmup", on_request=None)
    warm = await warming.serve(plan.warmup, plan.concurrency)
    if on_warm is not None:
        on_warm()
    before = backend.stats()
    client = _Client(backend, seed, idle_timeout_s, clock, "request", on_request)
    started_at = datetime.now(UTC).isoformat(timespec="milliseconds")
    records = await client.serve(plan.measured, None if plan.is_open else plan.concurrency)
    duration_s = client.now()
    return RunRecord(
        repeat=repeat,
        started_at=started_at,
        seed=seed,
        duration_s=duration_s,
        requests=records,
        step_stats=_difference(before, backend.stats()) | client.monitor.stats(),
        num_warmup_requests=sum(record.error is None for record in warm),
        max_client_lag_s=client.monitor.max_lag_s,
    )


class _Client:
    """Sends requests to one backend; its clock starts at zero when it is made."""

    def __init__(
        self,
        backend: Backend,
        seed: int,
        idle_timeout_s: float,
        clock: Callable[[], float],
        name: str,
        on_request: Callable[[int], None] | None,
    ) -> None:
        self._backend = backend
        self._seed = seed
        self._idle_timeout_s = idle_timeout_s
        self._clock = clock
        self._name = name
        self._on_request = on_request
        self._records: dict[int, RequestRecord] = {}
        self._start_s = clock()
        self.monitor = ClientMonitor(clock)

    def now(self) -> float:
        """Seconds since the start of the run."""
        return self._clock() - self._start_s

    async def serve(
        self, requests: Sequence[PlannedRequest], concurrency: int | None
    ) -> tuple[RequestRecord, ...]:
        """Serve all; records come in the order of the requests. None: an open loop."""
        queue = sessions(requests)
        async with asyncio.TaskGroup() as watching:
            watcher = watching.create_task(self.monitor.watch())
            if concurrency is None:
                await self._open(queue)
            else:
                await self._closed(queue, concurrency)
            watcher.cancel()
        return tuple(self._records[index] for index in range(len(requests)))

    async def _closed(self, queue: Sequence[_Session], concurrency: int) -> None:
        """Workers that share the queue: each has one request in flight, or thinks."""
        remaining = iter(queue)

        async def work() -> None:
            for session in remaining:
                await self._session(session, self.now())

        async with asyncio.TaskGroup() as workers:
            for _ in range(min(concurrency, len(queue))):
                workers.create_task(work())

    async def _open(self, queue: Sequence[_Session]) -> None:
        """Start every session when it is due, however many are under way."""
        async with asyncio.TaskGroup() as started:
            for session in sorted(queue, key=_due_s):
                delay_s = _due_s(session) - self.now()
                if delay_s > 0:
                    await asyncio.sleep(delay_s)
                started.create_task(self._session(session, _due_s(session)))

    async def _session(self, session: _Session, scheduled_s: float) -> None:
        for position, (index, request) in enumerate(session):
            if position > 0:
                scheduled_s = self.now() + request.think_s
                await asyncio.sleep(request.think_s)
            self._records[index] = await self._request(index, request, scheduled_s)
            if self._on_request is not None:
                self._on_request(len(self._records))

    async def _request(
        self, index: int, request: PlannedRequest, scheduled_s: float
    ) -> RequestRecord:
        with self.monitor.request():
            name = f"{self._name}-{index}"
            stream = StreamRecord(name, request, scheduled_s, sent_s=self.now())
            try:
                async with asyncio.timeout(self._idle_timeout_s) as idle:
                    await self._consume(request, stream, idle)
            except Exception as error:
                stream.error = self._describe(error, idle)
                return stream.freeze(done_s=None)
            return stream.freeze(done_s=self.now())

    async def _consume(
        self, request: PlannedRequest, stream: StreamRecord, idle: asyncio.Timeout
    ) -> None:
        clock_of_timeouts = asyncio.get_running_loop().time
        params = GenerationParams(max_tokens=request.max_tokens, seed=self._seed)
        async with aclosing(self._backend.stream(request.prompt_token_ids, params)) as events:
            async for event in events:
                stream.add(event, self.now())
                idle.reschedule(clock_of_timeouts() + self._idle_timeout_s)

    def _describe(self, error: Exception, idle: asyncio.Timeout) -> str:
        if idle.expired():
            return f"the stream was silent for {self._idle_timeout_s:g} s"
        return describe(error)


def _due_s(session: _Session) -> float:
    due_s = session[0][1].scheduled_s
    assert due_s is not None, "in an open loop every session has its time"
    return due_s


def _difference(before: dict[str, float], after: dict[str, float]) -> dict[str, float]:
    """Counters over the run; a `peak_` is the peak since the backend started."""
    return {
        name: value if name.startswith("peak_") else value - before.get(name, 0)
        for name, value in after.items()
    }
