"""A server that is started, waited for and ended: nothing of it is ever left."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from llmopt.backends.managed_server import HOST, ManagedServer, free_port, log_tail
from llmopt.backends.profiles.launch import LaunchCommand
from llmopt.errors import BackendError

FAKE = Path(__file__).parents[2] / "support" / "fake_server.py"


class Fake:
    """A fake server under management, and where it writes down its process ids."""

    def __init__(self, directory: Path, order: dict[str, Any], **options: Any) -> None:
        self.pid_file = directory / "pids"
        self.log = directory / "logs" / "fake.log"
        self.port = free_port()
        order = {"pids": str(self.pid_file), **order}
        command = LaunchCommand(
            (sys.executable, str(FAKE), "--port", str(self.port)),
            {"FAKE_SERVER": json.dumps(order)},
        )
        settings: dict[str, Any] = {"timeout_s": 20.0, "grace_s": 2.0} | options
        self.server = ManagedServer(
            "fake",
            command,
            port=self.port,
            is_ready=self.is_healthy,
            variables=dict(os.environ),
            log=self.log,
            **settings,
        )

    def is_healthy(self) -> bool:
        return httpx.get(f"http://{HOST}:{self.port}/health", trust_env=False).status_code == 200

    @property
    def pids(self) -> list[int]:
        return [int(line) for line in self.pid_file.read_text().split()]


def alive(pids: list[int]) -> list[int]:
    return [
        pid
        for pid in pids
        if psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    ]


def wait_until_gone(pids: list[int], seconds: float = 10.0) -> None:
    deadline_s = time.monotonic() + seconds
    while alive(pids) and time.monotonic() < deadline_s:
        time.sleep(0.05)
    assert alive(pids) == []


def test_it_is_waited_for_and_ended(tmp_path):
    waits: list[tuple[float, str]] = []
    fake = Fake(tmp_path, {"ready_after_s": 0.6, "says": "loading \x1b[1mweights\x1b[0m"})
    fake.server.start(lambda *seen: waits.append(seen))
    assert fake.is_healthy()
    assert len(alive(fake.pids)) == 1
    assert waits[-1][0] >= 0.4
    assert waits[-1][1] == "loading weights"
    fake.server.check()
    fake.server.stop()
    assert alive(fake.pids) == []
    fake.server.stop()


def test_it_can_be_started_again_and_its_log_goes_on(tmp_path):
    fake = Fake(tmp_path, {"says": "hello"})
    for _ in range(2):
        fake.server.start()
        fake.server.stop()
    assert fake.log.read_text().count("hello") == 2
    assert fake.log.read_text().count("--- ") == 2
    assert alive(fake.pids) == []


def test_one_that_is_never_ready_is_ended_and_its_log_quoted(tmp_path):
    fake = Fake(tmp_path, {"ready_after_s": None, "says": "still compiling"}, timeout_s=0.8)
    with pytest.raises(
        BackendError, match=r"not ready after 0\.8 s; its log ends: still compiling"
    ):
        fake.server.start()
    assert alive(fake.pids) == []


def test_one_that_dies_at_once_says_why(tmp_path):
    fake = Fake(tmp_path, {"exits": 3, "says": "ValueError: no kernel for this"})
    with pytest.raises(BackendError) as error:
        fake.server.start()
    assert "fake ended by itself (exit status 3)" in error.value.message
    assert error.value.message.endswith("its log ends: ValueError: no kernel for this")
    assert error.value.remedy == "Its whole log is logs/fake.log."


def test_one_that_dies_later_is_found_out(tmp_path):
    fake = Fake(tmp_path, {"dies_after_s": 0.5, "forks": True}, grace_s=0.3)
    fake.server.start()
    for _ in range(2):
        with pytest.raises(BackendError, match="SIGKILL, most likely for lack of memory"):
            fake.server.check(patience_s=10.0)
    fake.server.stop()


def test_one_that_ignores_the_request_to_end_is_ended_by_force(tmp_path):
    fake = Fake(tmp_path, {"ignores_term": True}, grace_s=0.5)
    fake.server.start()
    started_s = time.monotonic()
    fake.server.stop()
    assert time.monotonic() - started_s >= 0.5
    assert alive(fake.pids) == []


def test_what_it_left_behind_by_forking_twice_ends_too(tmp_path):
    fake = Fake(tmp_path, {"forks": True}, grace_s=0.5)
    fake.server.start()
    server, grandchild = sorted(alive(fake.pids))
    assert psutil.Process(grandchild).ppid() != server
    assert "LLMOPT_SERVER_TAG" not in psutil.Process(grandchild).environ()
    fake.server.stop()
    assert alive(fake.pids) == []


def test_a_program_that_is_not_there(tmp_path):
    server = ManagedServer(
        "fake",
        LaunchCommand(("/nowhere/vllm", "serve")),
        port=1,
        is_ready=lambda: True,
        variables={},
        log=tmp_path / "logs" / "x.log",
        timeout_s=5.0,
    )
    with pytest.raises(BackendError, match=r"cannot be started \(No such file or directory"):
        server.start()


def test_another_server_at_its_port_is_not_taken_for_it(tmp_path):
    other = Fake(tmp_path, {})
    other.server.start()
    fake = Fake(tmp_path, {"ready_after_s": None, "pids": str(tmp_path / "more")}, timeout_s=0.8)
    fake.server._port = other.port
    fake.server._is_ready = other.is_healthy
    with pytest.raises(BackendError, match="was not ready"):
        fake.server.start()
    other.server.stop()


def test_a_log_that_cannot_be_written(tmp_path):
    (tmp_path / "logs").write_text("a file")
    with pytest.raises(BackendError, match="cannot be written"):
        Fake(tmp_path, {}).server.start()


def test_an_interrupt_while_waiting_ends_it(tmp_path):
    def interrupt(waited_s: float, line: str) -> None:
        if line:
            raise KeyboardInterrupt

    fake = Fake(tmp_path, {"ready_after_s": None})
    with pytest.raises(KeyboardInterrupt):
        fake.server.start(interrupt)
    assert alive(fake.pids) == []


def test_it_ends_when_its_guard_was_killed(tmp_path):
    fake = Fake(tmp_path, {})
    fake.server.start()
    (pid,) = fake.pids
    guard = psutil.Process(pid).parent()
    assert guard is not None
    assert any("server_guard" in part for part in guard.cmdline())
    guard.kill()
    with pytest.raises(BackendError, match=r"ended by itself \(with its guard\)"):
        fake.server.check(patience_s=10.0)
    fake.server.stop()
    assert alive(fake.pids) == []


OWNER = """
import json, os, signal, sys, time
from pathlib import Path
sys.path.insert(0, {folder!r})
from test_managed_server import Fake
fake = Fake(Path({directory!r}), {order!r}, grace_s=0.5)
fake.server.start()
print("ready", flush=True)
{then}
"""


@pytest.mark.parametrize(
    ("then", "number"),
    [
        ("os._exit(1)", None),
        ("sys.exit(0)", None),
        ("time.sleep(60)", signal.SIGINT),
        ("time.sleep(60)", signal.SIGKILL),
    ],
    ids=["crash", "exit", "SIGINT", "SIGKILL"],
)
def test_it_never_outlives_whoever_started_it(tmp_path, then, number):
    code = OWNER.format(
        folder=str(Path(__file__).parent),
        directory=str(tmp_path),
        order={"forks": True, "ignores_term": True},
        then=then,
    )
    owner = subprocess.Popen(
        [sys.executable, "-c", code],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    with owner:
        assert owner.stdout is not None
        assert owner.stdout.readline() == b"ready\n"
        pids = [int(line) for line in (tmp_path / "pids").read_text().split()]
        assert len(pids) == 2
        if number is not None:
            owner.send_signal(number)
        owner.wait(timeout=20)
    wait_until_gone(pids)


def test_the_tail_of_a_log(tmp_path):
    log = tmp_path / "x.log"
    assert log_tail(log) == ""
    log.write_bytes(b"--- start\n" + b"".join(b"line %d\r\n" % i for i in range(20)) + b"\xff\n\n")
    assert log_tail(log, num_lines=3) == "line 18 | line 19 | �"
    log.write_text("x" * 5000)
    assert len(log_tail(log)) == 1000
