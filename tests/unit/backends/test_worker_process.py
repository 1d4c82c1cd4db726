import os
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from llmopt.backends import worker_process
from llmopt.backends.worker_process import WorkerProcess
from llmopt.errors import BackendError

ECHO = "import sys\nfor line in sys.stdin: print(line, end='', flush=True)"
IN_HALVES = """
import os, time
os.write(1, b'{"a": 1}\\n{"b"')
time.sleep(0.1)
os.write(1, b': 2}\\n')
time.sleep(600)
"""


@pytest.fixture
def start(tmp_path, monkeypatch) -> Iterator[Callable[[str], WorkerProcess]]:
    monkeypatch.setattr(worker_process, "GRACE_S", 0.5)
    started = []

    def run(code: str) -> WorkerProcess:
        command = [sys.executable, "-c", code]
        log = tmp_path / "log"
        started.append(WorkerProcess("it", command, variables=dict(os.environ), log=log))
        return started[-1]

    yield run
    for process in started:
        process.end()


def receive(process: WorkerProcess, count: int, timeout_s: float = 10.0) -> list[Any]:
    messages: list[Any] = []
    deadline_s = time.monotonic() + timeout_s
    while len(messages) < count:
        process.wait(deadline_s)
        messages += process.receive()
    return messages


def test_a_line_may_come_in_pieces(start):
    assert receive(start(IN_HALVES), 2) == [{"a": 1}, {"b": 2}]


def test_a_message_may_be_larger_than_the_pipes(start):
    message = {"ids": list(range(100_000))}
    process = start(ECHO)
    assert not process.send(message)
    assert receive(process, 1) == [message]
    assert process.flush()


def test_messages_keep_their_order(start):
    process = start(ECHO)
    for number in range(2000):
        process.send({"id": number})
    assert [message["id"] for message in receive(process, 2000)] == list(range(2000))


def test_nothing_to_receive_is_no_wait(start):
    assert start(ECHO).receive() == []


@pytest.mark.parametrize("line", ["[1]", "null", "{", "", "\\xff"])
def test_a_line_that_is_no_message_is_shown(start, line):
    process = start(f"import os, time; os.write(1, b'{line}\\n'); time.sleep(600)")
    with pytest.raises(BackendError, match="it sent a line that is no message: "):
        receive(process, 1)


def test_the_log_has_what_every_start_said(start, tmp_path):
    for number in range(2):
        process = start(f"import sys; print('start {number}', file=sys.stderr); sys.exit(3)")
        with pytest.raises(BackendError, match=rf"status 3; .*start {number}\. ") as at:
            receive(process, 1)
        assert at.value.remedy == f"Its whole log is {tmp_path.name}/log."
    assert (tmp_path / "log").read_text() == "start 0\nstart 1\n"
