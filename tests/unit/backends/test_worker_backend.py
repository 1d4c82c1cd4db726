import asyncio
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import aclosing
from pathlib import Path
from typing import Any

import psutil
import pytest

from llmopt.backends import worker_backend, worker_process
from llmopt.backends.protocol import GenerationParams, TokenEvent
from llmopt.backends.worker_backend import WorkerBackend
from llmopt.backends.worker_options import WORKER_KINDS, WorkerKind, WorkerOptions
from llmopt.errors import BackendError, UsageError

FAKE = Path(__file__).parents[2] / "support" / "fake_worker.py"
PROMPT = [5, 6, 7]


@pytest.fixture
def make(tmp_path) -> Iterator[Callable[..., WorkerBackend]]:
    made = []

    def make_backend(behaviour: str = "", *, step_s: float = 0.0, **options: Any) -> WorkerBackend:
        script = tmp_path / "fake_worker.py"  # by which its processes are found
        shutil.copy(FAKE, script)
        kind = WorkerKind("fake", script, {"behaviour": behaviour, "step_s": step_s})
        limits = {"num_threads": 1, "max_model_len": 64, "max_num_seqs": 4} | options
        made.append(
            WorkerBackend(
                WorkerOptions(kind, Path(sys.executable), tmp_path, tmp_path / "log", **limits)
            )
        )
        return made[-1]

    yield make_backend
    for backend in made:
        backend.stop()


@pytest.fixture
def start(make) -> Callable[..., WorkerBackend]:
    def start_backend(*args: Any, **kwargs: Any) -> WorkerBackend:
        backend = make(*args, **kwargs)
        backend.start()
        return backend

    return start_backend


async def collect(backend: WorkerBackend, prompt: Any = PROMPT, **params: Any) -> list[TokenEvent]:
    return [event async for event in backend.stream(prompt, GenerationParams(**params))]


async def outcomes(backend: WorkerBackend, count: int) -> list[Any]:
    streams = [collect(backend, max_tokens=8) for _ in range(count)]
    return await asyncio.gather(*streams, return_exceptions=True)


def process_of(backend: WorkerBackend) -> psutil.Process:
    assert backend._process is not None
    return psutil.Process(backend._process.pid)


def is_gone(process: psutil.Process, within_s: float = 10.0) -> bool:
    deadline = time.monotonic() + within_s
    while time.monotonic() < deadline:
        if not process.is_running() or process.status() == psutil.STATUS_ZOMBIE:
            return True
        time.sleep(0.02)
    return False


def left_running(directory: Path) -> list[psutil.Process]:
    """The workers whose script is in a directory."""
    script = str(directory / "fake_worker.py")
    return [p for p in psutil.process_iter(["cmdline"]) if script in (p.info["cmdline"] or [])]


def test_a_request_gets_its_tokens_one_event_a_step(start):
    backend = start()
    events = asyncio.run(collect(backend, max_tokens=3))
    assert [event.num_tokens for event in events] == [1, 1, 1]
    assert [event.finish_reason for event in events] == [None, None, "length"]
    assert events[-1].num_prompt_tokens == 3


def test_the_start_says_what_serves(start):
    backend = start(max_num_seqs=2, prefix_caching=True)
    assert backend.name == "fake"
    assert backend.version == "1.2.3"
    assert backend.settings["max_num_seqs"] == 2
    assert backend.settings["prefix_caching"] is True
    assert backend.settings["threads_seen"] == "1"
    assert backend.command[0] == sys.executable
    assert backend.command[-1].endswith("fake_worker.py")


def test_what_libraries_print_is_in_the_log_only(start, tmp_path):
    backend = start()
    assert len(asyncio.run(collect(backend, max_tokens=2))) == 2
    log = (tmp_path / "log").read_text()
    assert "a library prints to standard output" in log
    assert "and to standard error" in log


def test_more_requests_than_slots_wait(start):
    backend = start(max_num_seqs=2)

    async def main() -> list[list[TokenEvent]]:
        prompts = [list(range(n)) for n in range(1, 9)]
        return await asyncio.gather(*[collect(backend, p, max_tokens=4) for p in prompts])

    assert [len(events) for events in asyncio.run(main())] == [4] * 8
    assert backend.stats()["num_steps"] >= 16  # 32 tokens, two in a step at most


def test_one_start_serves_several_loops(start):
    backend = start()
    for _ in range(3):
        assert len(asyncio.run(collect(backend, max_tokens=2))) == 2
    assert backend.stats()["num_steps"] == 6


def test_statistics_come_while_requests_are_in_flight(start):
    backend = start(step_s=0.02)

    async def main() -> list[float]:
        params = GenerationParams(max_tokens=40)
        return [backend.stats()["num_steps"] async for _ in backend.stream(PROMPT, params)]

    steps = asyncio.run(main())
    assert len(steps) == 40
    assert 1 <= steps[0] < steps[20] < steps[-1] == 40
    assert backend.stats()["peak_rss_bytes"] > 1 << 20


def test_a_closed_stream_frees_its_slot(start):
    backend = start(max_num_seqs=1, step_s=0.02)

    async def main() -> list[TokenEvent]:
        async with aclosing(backend.stream(PROMPT, GenerationParams(max_tokens=60))) as events:
            async for _ in events:
                break
        return await collect(backend, max_tokens=2)

    assert len(asyncio.run(main())) == 2
    assert backend.stats()["num_aborted"] == 1
    assert backend.stats()["num_steps"] < 40


def test_a_cancelled_request_that_waits_is_never_begun(start):
    backend = start(max_num_seqs=1, step_s=0.05)

    async def main() -> list[TokenEvent]:
        first = asyncio.create_task(collect(backend, max_tokens=20))
        await asyncio.sleep(0.1)
        second = asyncio.create_task(collect(backend, max_tokens=50))
        await asyncio.sleep(0.1)
        second.cancel()
        return await first

    assert len(asyncio.run(main())) == 20
    stats = backend.stats()
    assert stats["num_aborted"] == 0
    assert stats["num_steps"] == 20


@pytest.mark.parametrize(
    ("prompt", "max_tokens", "reason"),
    [
        (list(range(60)), 5, "60 tokens and 5 new ones are more than the 64 of the context"),
        ([], 5, "a prompt of 0 tokens"),
        (PROMPT, 0, "0 new ones"),
    ],
)
def test_what_cannot_be_served_fails_alone(start, prompt, max_tokens, reason):
    backend = start()

    async def main() -> list[Any]:
        refused = collect(backend, prompt, max_tokens=max_tokens)
        served = collect(backend, list(range(60)), max_tokens=4)
        return await asyncio.gather(refused, served, return_exceptions=True)

    refused, served = asyncio.run(main())
    assert isinstance(refused, BackendError)
    assert reason in str(refused)
    assert len(served) == 4


def test_an_engine_refuses_one_request(start):
    backend = start("refuses")
    refused, *_ = asyncio.run(outcomes(backend, 1))
    assert isinstance(refused, BackendError)
    assert "fake refused the request: out of blocks" in str(refused)
    assert len(asyncio.run(collect(backend, max_tokens=1))) == 1


def test_sampling_is_refused(start):
    backend = start()
    with pytest.raises(UsageError, match="greedily"):
        asyncio.run(collect(backend, max_tokens=1, temperature=0.7))


@pytest.mark.parametrize(
    ("behaviour", "reason"),
    [
        ("fails to load", "fake failed: ValueError: no such checkpoint; its log ends: "),
        ("dies as it loads", "fake ended with status 7; its log ends: a library prints"),
    ],
)
def test_a_start_that_fails_says_why_and_leaves_nothing(make, behaviour, reason, tmp_path):
    backend = make(behaviour)
    with pytest.raises(BackendError) as caught:
        backend.start()
    assert reason in str(caught.value)
    assert f"{tmp_path.name}/log" in caught.value.remedy
    assert left_running(tmp_path) == []


def test_a_start_has_its_time(make, monkeypatch, tmp_path):
    monkeypatch.setattr(worker_process, "GRACE_S", 0.2)
    backend = make("never ready", start_timeout_s=2)
    with pytest.raises(BackendError, match=r"fake does not answer; its log ends: .*error"):
        backend.start()
    assert left_running(tmp_path) == []


def test_no_python_is_one_sentence(make, tmp_path):
    backend = WorkerBackend(
        WorkerOptions(
            WORKER_KINDS["openvino"], tmp_path / "none", tmp_path, tmp_path / "log", 1, 8, 1
        )
    )
    with pytest.raises(BackendError, match="openvino cannot be started: No such file"):
        backend.start()
    backend.stop()


@pytest.mark.parametrize(
    ("behaviour", "reason"),
    [
        ("dies", "fake ended with status 9; its log ends: .*out of luck"),
        ("raises", "fake failed: RuntimeError: a kernel failed; its log ends: .*RuntimeError"),
        ("garbles", "fake sent a line that is no message: 'Segmentation fault'"),
        ("forgets the tokens", "fake sent a message of no known form: {'id': "),
    ],
)
def test_a_worker_that_breaks_fails_every_request_and_all_later_ones(
    start, behaviour, reason, tmp_path
):
    backend = start(behaviour)
    assert len(left_running(tmp_path)) == 1
    for error in asyncio.run(outcomes(backend, 3)):
        assert isinstance(error, BackendError)
    with pytest.raises(BackendError, match=reason):
        asyncio.run(collect(backend, max_tokens=1))
    with pytest.raises(BackendError, match=reason):
        backend.stats()
    backend.stop()
    assert left_running(tmp_path) == []


def test_a_worker_ended_from_outside_is_named(start):
    backend = start(step_s=0.01)

    async def main() -> list[TokenEvent]:
        task = asyncio.create_task(collect(backend, max_tokens=60))
        await asyncio.sleep(0.05)
        os.kill(process_of(backend).pid, signal.SIGKILL)
        return await task

    with pytest.raises(BackendError, match="signal 9, most likely for lack of memory"):
        asyncio.run(main())


def test_a_worker_that_hangs_is_ended_with_its_children(start, monkeypatch):
    monkeypatch.setattr(worker_backend, "STATS_TIMEOUT_S", 0.3)
    monkeypatch.setattr(worker_process, "GRACE_S", 0.2)
    backend = start("stops answering")
    process, child = process_of(backend), psutil.Process(backend.settings["child"])

    async def main() -> None:
        request = asyncio.create_task(collect(backend, max_tokens=8))
        while process.status() != psutil.STATUS_STOPPED:
            await asyncio.sleep(0.01)
        request.cancel()

    asyncio.run(main())
    with pytest.raises(BackendError, match="fake does not answer"):
        backend.stats()
    assert child.is_running()
    backend.stop()
    assert is_gone(process)
    assert is_gone(child)


def test_more_is_sent_than_the_pipe_holds(start):
    """A worker that does not read must not hold up the client's loop."""
    backend = start(max_model_len=200_000, step_s=0.01)
    process = process_of(backend)

    async def main() -> tuple[float, list[TokenEvent]]:
        process.suspend()
        task = asyncio.create_task(collect(backend, [100_000] * 100_000, max_tokens=3))
        started = time.monotonic()
        await asyncio.sleep(0.05)
        late_s = time.monotonic() - started
        process.resume()
        return late_s, await task

    late_s, events = asyncio.run(main())
    assert late_s < 5
    assert len(events) == 3
    assert events[-1].num_prompt_tokens == 100_000


def test_a_stopped_backend_starts_again_with_counters_at_zero(start):
    backend = start("has a child")
    child = psutil.Process(backend.settings["child"])
    asyncio.run(collect(backend, max_tokens=3))
    backend.stop()
    backend.stop()
    assert is_gone(child)
    backend.start()
    assert backend.stats()["num_steps"] == 0
    assert len(asyncio.run(collect(backend, max_tokens=3))) == 3


CLIENT = """
import sys, time
from pathlib import Path
from llmopt.backends.worker_backend import WorkerBackend
from llmopt.backends.worker_options import WorkerKind, WorkerOptions
kind = WorkerKind("fake", Path(sys.argv[1]), {"behaviour": "has a child"})
here = Path(sys.argv[2])
backend = WorkerBackend(WorkerOptions(kind, Path(sys.executable), here, here / "log", 1, 64, 4))
backend.start()
print(backend._process.pid, backend.settings["child"], flush=True)
time.sleep(600)
"""


@pytest.mark.usefixtures("interruptible")
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_no_worker_outlives_its_client(number, tmp_path):
    with subprocess.Popen(
        [sys.executable, "-c", CLIENT, str(FAKE), str(tmp_path)],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    ) as client:
        assert client.stdout is not None
        processes = [psutil.Process(int(pid)) for pid in client.stdout.readline().split()]
        assert len(processes) == 2
        try:
            client.send_signal(number)
            assert all(is_gone(process) for process in processes)
        finally:
            client.kill()
