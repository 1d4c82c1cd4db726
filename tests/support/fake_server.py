#!/usr/bin/env python
"""A program that is started as a serving framework is, and does what FAKE_SERVER says (JSON).

    ready_after_s    answers 503 at /health until then; null: for ever
    says             a line for its log
    exits            a status to end with at once
    dies_after_s     seconds after which it ends itself with SIGKILL
    dies_after       requests after which it does so
    ignores_term     SIGTERM does nothing
    forks            leaves a grandchild behind in a session of its own, without our variables
    behaviour        of its model, as of `mock_server`
    pids             a file to which it appends its process ids

It takes the arguments of vLLM and of llama.cpp's server; other ones are ignored. It knows no
llmopt.
"""

import argparse
import asyncio
import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

from mock_server.behaviour import Behaviour
from mock_server.server import MockServer

SLEEPER = "import time; time.sleep(600)"


def note(order: dict[str, Any], pid: int) -> None:
    if "pids" in order:
        with open(order["pids"], "a") as pids:
            print(pid, file=pids)


def leave_grandchild(order: dict[str, Any]) -> None:
    """Fork twice, as daemons do: the middle process ends, and the last one is nobody's child."""
    middle = (
        "import subprocess, sys\n"
        f"child = subprocess.Popen([sys.executable, '-c', {SLEEPER!r}], start_new_session=True,"
        " stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env={'PATH': '/usr/bin'})\n"
        "print(child.pid)"
    )
    done = subprocess.run([sys.executable, "-c", middle], stdout=subprocess.PIPE, check=True)
    note(order, int(done.stdout))


def kill_self() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def kill_later(seconds: float) -> None:
    time.sleep(seconds)
    kill_self()


class FakeServer(MockServer):
    """The mock, which may end in the middle of a request."""

    def __init__(self, model: str, order: dict[str, Any]) -> None:
        ready_after_s = order.get("ready_after_s", 0.0)
        super().__init__(
            {model: Behaviour(**{"ttft_s": 0.0, "tpot_s": 0.001, **order.get("behaviour", {})})},
            3600.0 if ready_after_s is None else ready_after_s,
        )
        self._left = order.get("dies_after")

    async def _serve_one(self, reader: Any, writer: Any, connection: int) -> bool:
        is_kept = await super()._serve_one(reader, writer, connection)
        served = sum(len(model.log) for model in self._models.values())
        if self._left is not None and served >= self._left:
            kill_self()
        return is_kept


async def serve(port: int, model: str, order: dict[str, Any]) -> None:
    server = FakeServer(model, order)
    await asyncio.start_server(server.connected, "127.0.0.1", port, limit=1 << 24)
    await asyncio.Event().wait()


def main() -> None:
    parser = argparse.ArgumentParser(allow_abbrev=False)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--served-model-name", "--alias", default="mock")
    options, _ = parser.parse_known_args()
    order = json.loads(os.environ.get("FAKE_SERVER", "{}"))
    note(order, os.getpid())
    print(order.get("says", "starting"), flush=True)
    if "exits" in order:
        sys.exit(order["exits"])
    if order.get("ignores_term"):
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    if order.get("forks"):
        leave_grandchild(order)
    if "dies_after_s" in order:
        threading.Thread(target=kill_later, args=(order["dies_after_s"],), daemon=True).start()
    asyncio.run(serve(options.port, options.served_model_name, order))


if __name__ == "__main__":
    main()
