"""The process between llmopt and a server that it started: it ends the server, whatever happens.

Run as a program, with the standard library and psutil alone. It reads one line of JSON (arguments,
variables, log, grace) from standard input, starts the server in a session of its own, answers with
a line of JSON, and with another when the server ends. The law: when its input closes (llmopt is
done, or gone, however it went), or the server ends, or it is told to end, nothing that the server
started is left. On Linux it adopts what a descendant leaves behind when that ends
(`PR_SET_CHILD_SUBREAPER`, prctl(2)), so that a server that forks twice is found too; everywhere all
of them carry a tag in the environment.
"""

import contextlib
import ctypes
import json
import os
import signal
import subprocess
import sys
import threading
import time
from types import FrameType

import psutil

TAG_VARIABLE = "LLMOPT_SERVER_TAG"
_PR_SET_CHILD_SUBREAPER = 36
_POLL_S = 0.05
_KILL_PATIENCE_S = 10.0


def main() -> int:
    """Guard one server; returns an exit status."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is llmopt's to handle
    line = sys.stdin.buffer.readline()
    if not line:  # whoever started this is gone already
        return 1
    order = json.loads(line)
    tag = order["variables"][TAG_VARIABLE]
    _adopt_orphans()
    try:
        with open(order["log"], "ab") as log:
            server = subprocess.Popen(
                order["arguments"],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=order["variables"],
                start_new_session=True,
            )
    except OSError as error:
        _say({"error": f"{error.strerror}: {error.filename}"})
        return 1
    stop = _Stop(server, tag, order["grace_s"])
    signal.signal(signal.SIGTERM, stop.on_signal)
    threading.Thread(target=stop.when_input_closes, daemon=True).start()
    _say({"pid": server.pid})
    _say({"status": server.wait()})
    stop.end()
    return 0


class _Stop:
    """Ends the server and all that it started, once."""

    def __init__(self, server: "subprocess.Popen[bytes]", tag: str, grace_s: float) -> None:
        self._server = server
        self._tag = tag
        self._grace_s = grace_s
        self._lock = threading.Lock()

    def when_input_closes(self) -> None:
        """Wait for the end of standard input, then end the server."""
        while os.read(sys.stdin.fileno(), 1 << 12):
            pass
        self.end()

    def on_signal(self, _number: int, _frame: FrameType | None) -> None:
        """End the server from a thread of its own, since the main thread waits for it."""
        threading.Thread(target=self.end, daemon=True).start()

    def end(self) -> None:
        """Ask the server's group to end, give it time, and end all that is left."""
        with self._lock:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self._server.pid, signal.SIGTERM)
            end_all(self._tag, self._grace_s)


def end_all(tag: str, grace_s: float) -> list[int]:
    """Wait up to `grace_s` for the processes of a server to end, then end them by force.

    Returns the process ids of those that are left in spite of it.
    """
    deadline_s = time.monotonic() + grace_s
    while (left := server_processes(tag)) and time.monotonic() < deadline_s:
        time.sleep(_POLL_S)
    deadline_s = time.monotonic() + _KILL_PATIENCE_S
    while left and time.monotonic() < deadline_s:
        for process in left:
            with contextlib.suppress(psutil.Error):
                process.kill()
        time.sleep(_POLL_S)
        left = server_processes(tag)
    return [process.pid for process in left]


def server_processes(tag: str) -> list[psutil.Process]:
    """The living processes of a server: the descendants of this process, where this is its guard,
    and all that carry its tag.
    """
    guarded = psutil.Process().children(recursive=True) if _is_guard() else []
    found = {process.pid: process for process in guarded}
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):
            if process.pid not in found and process.environ().get(TAG_VARIABLE) == tag:
                found[process.pid] = process
    return [process for process in found.values() if _is_alive(process)]


def _is_guard() -> bool:
    return __name__ == "__main__"


def _is_alive(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.Error:
        return False


def _adopt_orphans() -> None:
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def _say(message: dict[str, object]) -> None:
    with contextlib.suppress(BrokenPipeError):
        print(json.dumps(message), flush=True)


if __name__ == "__main__":
    os._exit(main())  # without waiting for the thread that reads standard input
