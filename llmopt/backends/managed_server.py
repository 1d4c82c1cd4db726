"""A server that llmopt starts, waits for, and ends with everything that it started.

Knows nothing of what the server is asked. The laws: it listens on this machine's loopback address
only; every error says how its log ends; it never outlives this process, which its guard
(`server_guard`) sees to; when `stop` returns, none of its processes is left.
"""

import contextlib
import json
import os
import re
import secrets
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import psutil

from llmopt.backends import server_guard
from llmopt.backends.profiles.launch import LaunchCommand
from llmopt.backends.server_guard import TAG_VARIABLE, end_all
from llmopt.environment.process import plain_text
from llmopt.errors import BackendError

HOST = "127.0.0.1"
GRACE_S = 10.0  # between asking a server to end and ending it
TAIL_LINES = 8
OnWait = Callable[[float, str], None]  # seconds so far, and the log's last line

_POLL_S = 0.2
_TAIL_BYTES = 1 << 16
_TAIL_CHARACTERS = 1000


class ManagedServer:
    """A server of `command`, whose output is appended to `log`.

    port: that it is told to listen on; whoever else answers there is not it
    is_ready: asks it whether it can serve; an exception of it counts as no
    variables: the environment it runs in, without those that the command sets
    """

    def __init__(
        self,
        name: str,
        command: LaunchCommand,
        *,
        port: int,
        is_ready: Callable[[], bool],
        variables: Mapping[str, str],
        log: Path,
        timeout_s: float,
        grace_s: float = GRACE_S,
    ) -> None:
        self._name = name
        self._command = command
        self._port = port
        self._is_ready = is_ready
        self._tag = secrets.token_hex(8)
        self._variables = {**variables, **command.environment, TAG_VARIABLE: self._tag}
        self._log = log
        self._timeout_s = timeout_s
        self._grace_s = grace_s
        self._guard: subprocess.Popen[bytes] | None = None
        self._ended = ""  # how, if it did

    @property
    def log(self) -> Path:
        """Where its output is."""
        return self._log

    def start(self, on_wait: OnWait | None = None) -> None:
        """Start it and wait until it is ready.

        Raises BackendError when it cannot be started, ends, or is not ready in time.
        """
        assert self._guard is None, "a server is started once before it is stopped"
        self._ended = ""
        try:
            self._launch()
            self._wait(on_wait)
        except BaseException:
            self.stop()
            raise

    def check(self, patience_s: float = 0.0) -> None:
        """Raise BackendError when it has ended, or does so within this time."""
        assert self._guard is not None, "a server is started before it is checked"
        assert self._guard.stdout is not None, "a pipe was asked for"
        if not self._ended and select.select([self._guard.stdout], [], [], patience_s)[0]:
            self._ended = _how(json.loads(self._guard.stdout.readline() or b"{}").get("status"))
        if self._ended:
            raise self.failure(f"ended by itself ({self._ended})")

    def failure(self, what: str) -> BackendError:
        """The error that says what the server did, and how its log ends."""
        tail = log_tail(self._log)
        said = f"; its log ends: {tail}" if tail else "; its log is empty"
        where = f"{self._log.parent.name}/{self._log.name}"
        return BackendError(f"{self._name} {what}{said}", f"Its whole log is {where}.")

    def stop(self) -> None:
        """End it and all that it started; a second call does nothing."""
        guard, self._guard = self._guard, None
        if guard is None:
            return
        assert guard.stdin is not None, "a pipe was asked for"
        assert guard.stdout is not None, "a pipe was asked for"
        with contextlib.suppress(OSError):
            guard.stdin.close()
        try:
            guard.wait(timeout=2 * self._grace_s + 10)
        except subprocess.TimeoutExpired:
            guard.kill()
            guard.wait()
        guard.stdout.close()
        left = end_all(self._tag, grace_s=0.0)  # whose guard was ended itself
        if left:
            raise BackendError(
                f"{self._name} cannot be ended: its processes {left} are still there",
                "End them by hand.",
            )

    def _launch(self) -> None:
        try:
            self._log.parent.mkdir(parents=True, exist_ok=True)
            with self._log.open("a", encoding="utf-8") as log:
                log.write(f"--- {time.strftime('%Y-%m-%dT%H:%M:%S%z')} {self._name}\n")
        except OSError as error:
            raise BackendError(
                f"the log {self._log} of {self._name} cannot be written ({error.strerror})",
                "Choose another directory for results.",
            ) from error
        guard = self._guard = subprocess.Popen(
            [sys.executable, "-P", server_guard.__file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            start_new_session=True,
            bufsize=0,  # so that what can be read is seen to be there
        )
        assert guard.stdin is not None, "a pipe was asked for"
        assert guard.stdout is not None, "a pipe was asked for"
        order = {
            "arguments": self._command.arguments,
            "variables": self._variables,
            "log": str(self._log),
            "grace_s": self._grace_s,
        }
        guard.stdin.write(json.dumps(order).encode() + b"\n")
        guard.stdin.flush()
        answer = json.loads(guard.stdout.readline() or b'{"error": "its guard ended"}')
        if "error" in answer:
            raise BackendError(
                f"{self._name} cannot be started ({answer['error']})",
                "See whether it is installed: `llmopt backend list`.",
            )

    def _wait(self, on_wait: OnWait | None) -> None:
        started_s = time.monotonic()
        while True:
            self.check()
            with contextlib.suppress(Exception):  # not there yet
                if self._is_ready() and self._listens():
                    return
            waited_s = time.monotonic() - started_s
            if waited_s > self._timeout_s:
                raise self.failure(f"was not ready after {self._timeout_s:g} s")
            if on_wait is not None:
                on_wait(waited_s, log_tail(self._log, num_lines=1))
            time.sleep(_POLL_S)

    def _listens(self) -> bool:
        """Whether the port is one of its processes'."""
        assert self._guard is not None, "it has been launched"
        return any(
            connection.laddr.port == self._port
            for process in psutil.Process(self._guard.pid).children(recursive=True)
            for connection in process.net_connections("tcp")
            if connection.status == psutil.CONN_LISTEN
        )


def free_port() -> int:
    """A port of the loopback address that nobody listens on now."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as listener:
        listener.bind((HOST, 0))
        return int(listener.getsockname()[1])


def log_tail(log: Path, num_lines: int = TAIL_LINES) -> str:
    """The last lines of a log as one, without control characters; empty if there are none."""
    try:
        with log.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - _TAIL_BYTES))
            text = file.read().decode(errors="replace")
    except OSError:
        return ""
    lines = [plain_text(line) for line in re.split(r"[\r\n]+", text)]
    kept = [line for line in lines if line and not line.startswith("--- ")]
    return " | ".join(kept[-num_lines:])[-_TAIL_CHARACTERS:]


def _how(status: int | None) -> str:
    """What the exit status of a server says; None: its guard does not tell."""
    if status is None:
        return "with its guard"
    if status >= 0:
        return f"exit status {status}"
    reason = ", most likely for lack of memory" if status == -signal.SIGKILL else ""
    return f"{signal.Signals(-status).name}{reason}"
