"""Serves requests with one library: `python run_worker.py SCRIPT`, asked over its standard input.

Knows the protocol and nothing of engines. A message is one JSON object on a line.
In:   {"load": {settings}}, once and first
      {"id": 1, "prompt_token_ids": [..], "max_tokens": 16, "ignore_eos": true}
      {"abort": 1}, which has no answer
      {"stats": true}
Out:  {"ready": {"version": .., "settings": {..}}}, once and first
      {"id": 1, "token_ids": [..]}; the last one of a request has a "finish_reason"
      {"id": 1, "error": ".."}: that request is over, the others go on
      {"stats": {name: number}}
      {"failure": ".."}: the worker ends
The script has `load(settings)`, which returns an engine: `version`, `settings`, `stats()`, and
`serve(inbox, send)`, which never returns. The laws: nothing but the protocol is on standard output
(what libraries print goes to standard error); the worker and all that it started end when standard
input is closed; no request reaches the engine that is longer than it was told to serve.
"""

import json
import os
import resource
import runpy
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterable, Iterator
from typing import Any, BinaryIO

Message = dict[str, Any]
Send = Callable[[Iterable[Message]], None]


class Inbox:
    """Requests that wait for the engine, and what was aborted of those that it took."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._waiting: dict[int, Message] = {}  # in the order in which they came
        self._aborted: set[int] = set()

    def put(self, request: Message) -> None:
        """Let a request wait for the engine."""
        with self._changed:
            self._waiting[request["id"]] = request
            self._changed.notify()

    def abort(self, number: int) -> None:
        """Forget a request that waits, or tell the engine that has it."""
        with self._changed:
            if self._waiting.pop(number, None) is None:
                self._aborted.add(number)
                self._changed.notify()

    def take(self, limit: int, *, wait: bool = False, gather_s: float = 0.0) -> list[Message]:
        """Take requests, first come first served.

        wait: for the first of them, or for an abort
        gather_s: having one, wait for more until so many seconds brought none
        """
        with self._changed:
            if wait:
                self._changed.wait_for(lambda: self._waiting or self._aborted)
            while gather_s > 0 and 0 < (before := len(self._waiting)) < limit:
                self._changed.wait(gather_s)
                if len(self._waiting) <= before:
                    break
            numbers = list(self._waiting)[:limit]
            return [self._waiting.pop(number) for number in numbers]

    def aborted(self) -> set[int]:
        """The requests aborted since this was last asked; some of them may be over already."""
        with self._changed:
            aborted, self._aborted = self._aborted, set()
            return aborted


def main() -> int:
    """Load, then serve until the client is gone; returns the exit status of a failure."""
    send = sender(os.dup(1))
    os.dup2(2, 1)
    lines = private_input()
    order = json.loads(next(lines, b"null"))
    if order is None:
        end_group()
    settings: Message = order["load"]
    inbox = Inbox()
    engines: list[Any] = []  # one, once it is loaded
    listener = threading.Thread(
        target=listen, args=(lines, inbox, send, engines, settings["max_model_len"]), daemon=True
    )
    listener.start()
    try:
        engine = runpy.run_path(sys.argv[1])["load"](settings)
        engines.append(engine)
        send([{"ready": {"version": engine.version, "settings": engine.settings}}])
        engine.serve(inbox, send)
    except Exception as error:
        traceback.print_exc()
        send([{"failure": f"{type(error).__name__}: {error}"}])
    return 1


def sender(descriptor: int) -> Send:
    """The function that sends messages, all in one write; threads take turns."""
    lock = threading.Lock()

    def send(messages: Iterable[Message]) -> None:
        data = "".join(json.dumps(message) + "\n" for message in messages).encode()
        with lock:
            while data:
                data = data[os.write(descriptor, data) :]

    return send


def private_input() -> Iterator[bytes]:
    """The lines of standard input, which nothing else in this process can read."""
    lines: BinaryIO = os.fdopen(os.dup(0), "rb")
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.close(nothing)
    return iter(lines)


def listen(
    lines: Iterator[bytes], inbox: Inbox, send: Send, engines: list[Any], max_model_len: int
) -> None:
    """Take what the client says until it is gone, or says what cannot be understood."""
    try:
        for line in lines:
            message: Message = json.loads(line)
            if "abort" in message:
                inbox.abort(message["abort"])
            elif "stats" in message:
                send([{"stats": statistics(engines)}])
            elif reason := why_not(message, max_model_len):
                send([{"id": message["id"], "error": reason}])
            else:
                inbox.put(message)
    except Exception:
        traceback.print_exc()
    end_group()


def why_not(request: Message, max_model_len: int) -> str | None:
    """Why a request cannot be served, or None."""
    num_prompt, max_tokens = len(request["prompt_token_ids"]), request["max_tokens"]
    if num_prompt < 1 or max_tokens < 1:
        return f"a prompt of {num_prompt} tokens and {max_tokens} new ones: both must be at least 1"
    if num_prompt + max_tokens > max_model_len:
        return (
            f"a prompt of {num_prompt} tokens and {max_tokens} new ones are more than the "
            f"{max_model_len} of the context"
        )
    return None


def statistics(engines: list[Any]) -> dict[str, float]:
    """The engine's counters, and the most memory that this process has held."""
    kilobytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    counters: dict[str, float] = engines[0].stats() if engines else {}
    return {"peak_rss_bytes": kilobytes * 1024, **counters}


def end_group() -> None:
    """End this process, and if it leads a group, as it does when llmopt starts it, that whole."""
    if os.getpgrp() == os.getpid():
        os.killpg(os.getpgrp(), signal.SIGKILL)
    os._exit(1)


if __name__ == "__main__":
    status = main()
    sys.stdout.flush()
    os._exit(status)  # libraries leave threads behind that would keep the process waiting
