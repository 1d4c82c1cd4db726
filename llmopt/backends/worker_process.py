"""A worker's process and the two pipes to it: JSON objects, one a line, out and in.

Knows nothing of requests or of event loops: nothing here waits but `wait` and `end`. The laws:
whatever ends the worker or garbles a line is a BackendError with the tail of its log; when `end`
returns, nothing of its process group runs; and a worker ends by itself when its input is closed, as
it is when this process is gone, however it went.
"""

import contextlib
import json
import os
import select
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from llmopt.backends.managed_server import log_tail
from llmopt.errors import BackendError

GRACE_S = 5.0  # for a worker whose input was closed to end by itself
_CHUNK = 1 << 16
_SHOWN_OF_A_LINE = 120


class WorkerProcess:
    """A worker that was started, and runs until `end`."""

    def __init__(
        self, name: str, command: Sequence[str], *, variables: Mapping[str, str], log: Path
    ) -> None:
        """Start it in a process group of its own. Raises BackendError when that is impossible."""
        self._name = name
        self._log = log
        try:
            with log.open("ab") as record:
                self._process = subprocess.Popen(
                    command,
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=record,
                    env=dict(variables),
                    start_new_session=True,
                    bufsize=0,
                )
        except OSError as error:
            raise BackendError(
                f"{name} cannot be started: {error.strerror} ({error.filename})",
                "See whether its environment and the place of its log are there.",
            ) from error
        assert self._process.stdin is not None, "a pipe was asked for"
        assert self._process.stdout is not None, "a pipe was asked for"
        self.input = self._process.stdin.fileno()  # writable when `flush` can go on
        self.output = self._process.stdout.fileno()  # readable when `receive` has something
        for pipe in (self.input, self.output):
            os.set_blocking(pipe, False)
        self._unsent = bytearray()
        self._partial = b""  # of a line
        self._is_over = False

    @property
    def pid(self) -> int:
        """Of the process, and of its group."""
        return self._process.pid

    def send(self, message: Mapping[str, object]) -> bool:
        """Send one line, or what of it the pipe takes now. True: nothing waits to be sent."""
        self._unsent += json.dumps(message).encode() + b"\n"
        return self.flush()

    def flush(self) -> bool:
        """Send on what waits. True: nothing is left. A worker that ended is `receive`'s to tell."""
        try:
            while self._unsent:
                del self._unsent[: os.write(self.input, self._unsent)]
        except BlockingIOError:
            return False
        except BrokenPipeError:
            self._unsent.clear()
        return True

    def receive(self) -> list[dict[str, Any]]:
        """The messages that have come, without waiting.

        Raises BackendError when the worker has ended or sends what is no message.
        """
        try:
            chunk = os.read(self.output, _CHUNK)
        except BlockingIOError:
            return []
        if not chunk:
            raise self._ended()
        *lines, self._partial = (self._partial + chunk).split(b"\n")
        return [self._message(line) for line in lines]

    def wait(self, deadline_s: float) -> None:
        """Wait until something can be received, and send on meanwhile.

        Raises BackendError at the deadline, on the clock of `time.monotonic`.
        """
        while (left_s := deadline_s - time.monotonic()) > 0:
            blocked = [self.input] if self._unsent else []
            readable, writable, _ = select.select([self.output], blocked, [], left_s)
            if writable:
                self.flush()
            if readable:
                return
        raise self.failure("does not answer")

    def end(self) -> None:
        """Close its input, give it a moment, and end what is left of its group; once is enough."""
        if self._is_over:
            return
        self._is_over = True
        for pipe in (self._process.stdin, self._process.stdout):
            assert pipe is not None, "both pipes were asked for"
            pipe.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(timeout=GRACE_S)
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()

    def failure(self, what: str) -> BackendError:
        """The error that says what the worker did, and how its log ends."""
        tail = log_tail(self._log)
        said = f"; its log ends: {tail}" if tail else "; its log is empty"
        where = f"{self._log.parent.name}/{self._log.name}"
        return BackendError(f"{self._name} {what}{said}", f"Its whole log is {where}.")

    def _message(self, line: bytes) -> dict[str, Any]:
        try:
            message = json.loads(line)
        except ValueError:
            message = None
        if not isinstance(message, dict):
            shown = line[:_SHOWN_OF_A_LINE].decode(errors="replace")
            raise self.failure(f"sent a line that is no message: {shown!r}")
        return message

    def _ended(self) -> BackendError:
        try:
            status = self._process.wait(timeout=GRACE_S)
        except subprocess.TimeoutExpired:
            return self.failure("closed its output")
        if status == -signal.SIGKILL:
            return self.failure("was ended by signal 9, most likely for lack of memory")
        if status < 0:
            return self.failure(f"was ended by signal {-status}")
        return self.failure(f"ended with status {status}")
