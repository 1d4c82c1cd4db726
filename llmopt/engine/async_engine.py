"""The engine for many concurrent consumers: its loop in one thread, streams in asyncio.

Knows nothing about text, HTTP or measurement.
Law: only the thread of the loop touches the engine; each consumer gets each of its tokens once, in
order, or the error that ended the loop.
"""

import asyncio
import itertools
import threading
from collections import deque
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass, field

from llmopt.engine.engine import Engine
from llmopt.engine.request import StepOutput
from llmopt.engine.sampling_params import SamplingParams
from llmopt.errors import EngineError

_Event = StepOutput | Exception


@dataclass(frozen=True, slots=True, eq=False)
class _Stream:
    """The way from the background thread to one consumer."""

    request_id: str
    prompt_token_ids: Sequence[int]
    params: SamplingParams
    arrival_s: float
    loop: asyncio.AbstractEventLoop
    events: asyncio.Queue[_Event] = field(default_factory=asyncio.Queue)

    @property
    def sample_ids(self) -> tuple[str, ...]:
        """The engine's requests that this stream is of; see `Engine.add_request`."""
        if self.params.num_samples == 1:
            return (self.request_id,)
        return tuple(f"{self.request_id}/{i}" for i in range(self.params.num_samples))


class AsyncEngine:
    """Owns `engine` from now on, and serves it in a thread until it is closed.

    `start` makes a background thread for the loop, as `async with` does. `run` is the loop in the
    thread that calls it. The difference matters for speed on CPUs: a process whose main thread has
    computed with OpenMP keeps that team of threads, a second computing thread makes another, and
    GCC's runtime then stops spinning at barriers because there are more threads than cores, which
    makes small operators about twice as slow. Where the main thread computes too, run the loop
    there and put the consumers into another thread.
    """

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self._request_numbers = itertools.count()
        self._wake = threading.Condition()
        self._added: deque[_Stream] = deque()
        self._aborted: deque[str] = deque()
        self._closing = False
        self._failure: Exception | None = None
        self._streams: dict[str, _Stream] = {}  # of the loop's thread alone
        self._thread: threading.Thread | None = None

    async def __aenter__(self) -> "AsyncEngine":
        self.start()
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await asyncio.to_thread(self.close)

    async def generate(
        self, prompt_token_ids: Sequence[int], params: SamplingParams, arrival_s: float = 0.0
    ) -> AsyncGenerator[StepOutput, None]:
        """Stream one request; it is sent when the iteration starts and aborted when that ends.

        Several samples of one prompt come in one stream, with ids that end in /0, /1 and so on.

        Raises:
            UsageError, EngineError: as `Engine.add_request`, or the engine is closed.
            Exception: whatever ended the engine's loop.
        """
        loop = asyncio.get_running_loop()
        request_id = str(next(self._request_numbers))
        stream = _Stream(request_id, prompt_token_ids, params, arrival_s, loop)
        self._submit(stream)
        unfinished = set(stream.sample_ids)
        try:
            while unfinished:
                event = await stream.events.get()
                if isinstance(event, Exception):
                    unfinished.clear()
                    raise event
                if event.finish_reason is not None:
                    unfinished.discard(event.request_id)
                yield event
        finally:
            self.abort(*unfinished)

    def abort(self, *request_ids: str) -> None:
        """Drop requests soon, by the ids of their outputs; their streams then end with "abort"."""
        if request_ids:
            with self._wake:
                self._aborted.extend(request_ids)
                self._wake.notify()

    def start(self) -> None:
        """Run the loop in a background thread."""
        assert self._thread is None, "the loop is started once"
        self._thread = threading.Thread(target=self.run, name="llmopt-engine", daemon=True)
        self._thread.start()

    def run(self) -> None:
        """Serve in this thread until `close` is called from another.

        What ends the loop before that is the error of every stream; only an interruption is raised
        here too.
        """
        failure: Exception = _closed_error()
        try:
            while self._take_messages():
                self._deliver([(out.request_id, out) for out in self.engine.step()])
        except Exception as error:
            failure = error
        finally:
            self._fail_streams(failure)

    def close(self) -> None:
        """Stop after the current step; streams that are not finished get an `EngineError`."""
        with self._wake:
            self._closing = True
            self._wake.notify()
        if self._thread is not None:
            self._thread.join()

    def _submit(self, stream: _Stream) -> None:
        with self._wake:
            if self._failure is not None:
                raise self._failure
            if self._closing:
                raise _closed_error()
            self._added.append(stream)
            self._wake.notify()

    def _fail_streams(self, failure: Exception) -> None:
        with self._wake:
            self._failure = failure
            self._streams.update((name, one) for one in self._added for name in one.sample_ids)
            self._added.clear()
        for request_id in self._streams:
            self.engine.abort(request_id)
        self._deliver([(request_id, failure) for request_id in list(self._streams)])

    def _take_messages(self) -> bool:
        """Wait until there is work, apply what consumers sent; False when closing."""
        with self._wake:
            while not (
                self._closing or self._added or self._aborted or self.engine.has_unfinished()
            ):
                self._wake.wait()
            if self._closing:
                return False
            added, self._added = self._added, deque()
            aborted, self._aborted = self._aborted, deque()
        for stream in added:
            self._add(stream)
        for request_id in aborted:
            if self.engine.abort(request_id):
                self._deliver([(request_id, StepOutput(request_id, (), "abort"))])
        return True

    def _add(self, stream: _Stream) -> None:
        self._streams.update((name, stream) for name in stream.sample_ids)
        try:
            self.engine.add_request(
                stream.request_id, stream.prompt_token_ids, stream.params, stream.arrival_s
            )
        except Exception as error:
            self._deliver([(name, error) for name in stream.sample_ids])

    def _deliver(self, events: Sequence[tuple[str, _Event]]) -> None:
        """Hand events to their consumers, with one wake-up per event loop."""
        batches: dict[asyncio.AbstractEventLoop, list[tuple[_Stream, _Event]]] = {}
        for request_id, event in events:
            stream = self._streams[request_id]
            batches.setdefault(stream.loop, []).append((stream, event))
            if isinstance(event, Exception) or event.finish_reason is not None:
                del self._streams[request_id]
        for loop, batch in batches.items():
            try:
                loop.call_soon_threadsafe(_put_all, batch)
            except RuntimeError:  # the consumers' loop is closed: nobody will read or abort these
                for request_id in (name for stream, _ in batch for name in stream.sample_ids):
                    self._streams.pop(request_id, None)
                    self.engine.abort(request_id)


def _put_all(batch: Sequence[tuple[_Stream, _Event]]) -> None:
    for stream, event in batch:
        stream.events.put_nowait(event)


def _closed_error() -> EngineError:
    return EngineError("the engine is closed", "Make a new one.")
