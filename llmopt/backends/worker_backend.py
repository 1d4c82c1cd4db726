"""A library in a process of its own behind the Backend protocol.

Knows nothing of the library, which its worker script drives, nor about time: the load generator
takes it. The laws: an event is handed on in the loop's turn in which its line arrived; a worker
that ends or breaks the protocol fails every request that it has, with the tail of its log.
"""

import asyncio
import os
import time
from collections.abc import AsyncGenerator, Callable, Sequence
from typing import Any

from llmopt.backends.conversions import conversion_directory
from llmopt.backends.protocol import GenerationParams, T, TokenEvent
from llmopt.backends.worker_options import WorkerOptions
from llmopt.backends.worker_process import WorkerProcess
from llmopt.errors import BackendError, UsageError

STATS_TIMEOUT_S = 60.0
_OFFLINE = {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", "PYTHONUNBUFFERED": "1"}


class WorkerBackend:
    """One model, served by a library that its users call from Python."""

    def __init__(self, options: WorkerOptions) -> None:
        self._options = options
        self._process: WorkerProcess | None = None
        self._loop: asyncio.AbstractEventLoop | None = None  # that hears the worker
        self._streams: dict[int, asyncio.Queue[TokenEvent | BackendError]] = {}
        self._num_requests = 0
        self._failure: BackendError | None = None
        self._ready: dict[str, Any] = {}
        self._stats: dict[str, float] | None = None  # an answer that nobody has taken

    @property
    def name(self) -> str:
        """As recipes call the library and the way in which it is used."""
        return self._options.kind.name

    @property
    def version(self) -> str:
        """Version of the library; known after `start`."""
        return str(self._ready.get("version", "unknown"))

    @property
    def settings(self) -> dict[str, object]:
        """The limits, and after `start` also what the worker says of itself: the settings that it
        found or chose, and the versions of the libraries that compute.
        """
        return self._options.limits | dict(self._ready.get("settings", {}))

    @property
    def command(self) -> tuple[str, ...]:
        """The command line of the worker."""
        return self._options.command

    def start(self) -> None:
        """Start the worker and wait until it has loaded the checkpoint.

        Raises BackendError when it cannot, with what it said and the tail of its log.
        """
        assert self._process is None, "a backend is started once before it is stopped"
        options = self._options
        inherited = os.environ if options.variables is None else options.variables
        variables = {**_OFFLINE, **inherited, "OMP_NUM_THREADS": str(options.num_threads)}
        self._failure, self._ready, self._stats = None, {}, None
        process = WorkerProcess(self.name, self.command, variables=variables, log=options.log)
        self._process = process
        try:
            process.send({"load": _order(options)})
            self._receive_until(lambda: bool(self._ready), options.start_timeout_s)
        except BaseException:
            self.stop()
            raise

    def drive(self, client: Callable[[], T]) -> T:
        """Run the client here; the worker computes elsewhere."""
        return client()

    def stop(self) -> None:
        """End the worker, and whatever it started."""
        if self._process is None:
            return
        self._detach()
        self._process.end()
        self._process = None

    async def stream(
        self, prompt_token_ids: Sequence[int], params: GenerationParams
    ) -> AsyncGenerator[TokenEvent, None]:
        """Serve one request, greedily: one event for every line of the worker about it."""
        if params.temperature != 0:
            raise UsageError(f"{self.name} is asked greedily only", "Set the temperature to 0.")
        self._attach()
        self._num_requests += 1
        number = self._num_requests
        events = self._streams[number] = asyncio.Queue()
        is_over = False
        try:
            self._send(
                {
                    "id": number,
                    "prompt_token_ids": list(prompt_token_ids),
                    "max_tokens": params.max_tokens,
                    "ignore_eos": params.ignore_eos,
                }
            )
            while not is_over:
                event = await events.get()
                is_over = isinstance(event, BackendError) or event.finish_reason is not None
                if isinstance(event, BackendError):
                    raise event
                yield event
        finally:
            del self._streams[number]
            if not is_over and self._failure is None:
                self._send({"abort": number})

    def stats(self) -> dict[str, float]:
        """The worker's counters, such as `num_steps` and `peak_rss_bytes`.

        Raises BackendError when the worker has ended or does not answer.
        """
        self._check()
        self._stats = None
        self._send({"stats": True})
        self._receive_until(lambda: self._stats is not None, STATS_TIMEOUT_S)
        assert self._stats is not None, "it has been waited for"
        return self._stats

    @property
    def _running(self) -> WorkerProcess:
        assert self._process is not None, "a backend is started before it is used"
        return self._process

    def _check(self) -> None:
        """Raise the failure that ended the worker's service, if there was one."""
        if self._failure is not None:
            raise _again(self._failure)

    def _attach(self) -> None:
        """Let the running loop hear the worker. Raises BackendError if there is nothing to hear."""
        self._check()
        loop = asyncio.get_running_loop()
        if loop is not self._loop:
            loop.add_reader(self._running.output, self._receive)
            self._loop = loop

    def _detach(self) -> None:
        if (loop := self._open_loop) is not None:
            loop.remove_reader(self._running.output)
            loop.remove_writer(self._running.input)
        self._loop = None

    @property
    def _open_loop(self) -> asyncio.AbstractEventLoop | None:
        return None if self._loop is None or self._loop.is_closed() else self._loop

    def _send(self, message: dict[str, object]) -> None:
        is_sent = self._running.send(message)
        if not is_sent and (loop := self._open_loop) is not None:
            loop.add_writer(self._running.input, self._flush, loop)

    def _flush(self, loop: asyncio.AbstractEventLoop) -> None:
        if self._running.flush():
            loop.remove_writer(self._running.input)

    def _receive_until(self, is_done: Callable[[], bool], timeout_s: float) -> None:
        """Wait for what the worker owes, outside of any loop's turn."""
        deadline_s = time.monotonic() + timeout_s
        while not is_done():
            self._running.wait(deadline_s)
            self._receive()
            self._check()

    def _receive(self) -> None:
        """Hand on what has come; a failure goes to every stream, and ends the service."""
        try:
            for message in self._running.receive():
                self._take(message)
        except BackendError as error:
            self._failure = error
            self._detach()
            for events in self._streams.values():
                events.put_nowait(_again(error))

    def _take(self, message: dict[str, Any]) -> None:
        """Hand one message on. Raises BackendError when it is of no known form, or the last one."""
        try:
            if "id" in message:
                events = self._streams.get(message["id"])
                if events is not None:  # it was not given up meanwhile
                    events.put_nowait(self._event(message))
            elif "ready" in message:
                ready = message["ready"]
                self._ready = {"version": ready["version"], "settings": dict(ready["settings"])}
            elif "stats" in message:
                self._stats = {str(name): float(n) for name, n in message["stats"].items()}
            else:
                raise self._running.failure(f"failed: {message['failure']}")
        except (LookupError, TypeError, ValueError, AttributeError):
            raise self._running.failure(f"sent a message of no known form: {message}") from None

    def _event(self, message: dict[str, Any]) -> TokenEvent | BackendError:
        if "error" in message:
            return BackendError(
                f"{self.name} refused the request: {message['error']}",
                "Ask for less, or give the backend a longer context.",
            )
        return TokenEvent(
            num_tokens=len(message["token_ids"]),
            finish_reason=message.get("finish_reason"),
            num_prompt_tokens=message.get("num_prompt_tokens"),
            num_cached_tokens=message.get("num_cached_tokens"),
        )


def _order(options: WorkerOptions) -> dict[str, object]:
    """All that the worker is told before it loads. Raises BackendError for want of a cache."""
    order = options.limits | {"checkpoint": str(options.checkpoint)}
    if options.kind.converts and options.checkpoint.is_dir():
        try:
            kept = conversion_directory(options.kind.name, options.checkpoint, options.limits)
        except OSError as error:
            raise BackendError(
                f"there is no place for what {options.kind.name} converts: {error}",
                "Set LLMOPT_CACHE to a directory that can be written.",
            ) from error
        order["converted"] = str(kept)
    return order


def _again(error: BackendError) -> BackendError:
    """The same error as an object of its own, since each request raises it."""
    return BackendError(error.message, error.remedy)
