"""Child processes: their lines, their log, and their end."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from llmopt.environment.process import follow_process


def follow(code: str, log: Path, on_line=None) -> tuple[int, list[str]]:
    lines: list[str] = []
    status = follow_process(
        (sys.executable, "-c", code),
        variables=dict(os.environ),
        log=log,
        on_line=on_line or lines.append,
    )
    return status, lines


def wait_until_gone(pid: int) -> None:
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return
        if (Path("/proc") / str(pid) / "stat").read_text().split()[2] == "Z":
            return
        time.sleep(0.02)
    raise AssertionError(f"{pid} still runs")


def test_both_streams_are_followed_and_logged(tmp_path):
    code = "import sys; print('one', flush=True); print('two', file=sys.stderr); sys.exit(3)"
    assert follow(code, tmp_path / "log") == (3, ["one", "two"])
    assert (tmp_path / "log").read_text() == "one\ntwo\n"


def test_a_redrawn_bar_is_several_lines_and_colours_are_gone(tmp_path):
    code = r"print('10%\r\x1b[32m20%\x1b[0m\r\n\x07end', end='')"
    assert follow(code, tmp_path / "log") == (0, ["10%", "20%", "end"])


def test_letters_that_arrive_in_two_pieces_are_put_together(tmp_path):
    code = (
        "import os, time\nos.write(1, b'gr\\xc3'); time.sleep(0.2); os.write(1, b'\\xbc\\xc3\\x9f')"
    )
    assert follow(code, tmp_path / "log") == (0, ["grüß"])


def test_bytes_that_are_no_text_do_no_harm(tmp_path):
    assert follow("import os; os.write(1, b'a\\xff\\n')", tmp_path / "log") == (0, ["a\ufffd"])


def test_a_killed_child_shows_its_signal(tmp_path):
    status, _ = follow("import os; os.kill(os.getpid(), 9)", tmp_path / "log")
    assert status == -9


def test_the_variables_are_the_whole_environment(tmp_path):
    lines: list[str] = []
    code = "import os; print('HOME' in os.environ, os.environ['A'])"
    follow_process(
        (sys.executable, "-c", code),
        variables={"A": "b"},
        log=tmp_path / "log",
        on_line=lines.append,
    )
    assert lines == ["False b"]


def test_an_interrupt_ends_the_child_and_its_children(tmp_path):
    code = (
        "import subprocess, sys, time\n"
        "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)'])\n"
        "print(child.pid, flush=True)\n"
        "time.sleep(60)\n"
    )
    seen: list[int] = []

    def interrupt(line: str) -> None:
        seen.append(int(line))
        raise KeyboardInterrupt

    started = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        follow(code, tmp_path / "log", interrupt)
    wait_until_gone(seen[0])
    assert time.monotonic() - started < 10


def test_a_child_that_ignores_the_polite_signal_is_ended_all_the_same(tmp_path, monkeypatch):
    monkeypatch.setattr("llmopt.environment.process.GRACE_S", 0.1)
    code = (
        "import os, signal, time\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
        "print(os.getpid(), flush=True)\ntime.sleep(60)\n"
    )
    seen: list[int] = []

    def fail(line: str) -> None:
        seen.append(int(line))
        raise ValueError(line)

    with pytest.raises(ValueError, match=r"\d+"):
        follow(code, tmp_path / "log", fail)
    wait_until_gone(seen[0])


def test_what_a_finished_child_leaves_behind_is_ended(tmp_path):
    code = (
        "import os, subprocess, sys\n"
        "null = subprocess.DEVNULL\n"
        "command = [sys.executable, '-c', 'import time; time.sleep(60)']\n"
        "child = subprocess.Popen(command, stdout=null, stderr=null)\n"
        "print(child.pid)\n"
    )
    status, lines = follow(code, tmp_path / "log")
    assert status == 0
    wait_until_gone(int(lines[0]))


def test_standard_input_closes_when_the_parent_is_killed(tmp_path):
    """What lets a worker end with its parent even when that is killed outright."""
    parent = (
        "import os, sys\nfrom pathlib import Path\n"
        "from llmopt.environment.process import follow_process\n"
        "code = 'import os; print(os.getpid(), flush=True); os.read(0, 1); print(os.getpid())'\n"
        "follow_process((sys.executable, '-c', code), variables=dict(os.environ),\n"
        "    log=Path(sys.argv[1]), on_line=lambda line: print(line, flush=True))\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", parent, str(tmp_path / "log")], stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        pid = int(process.stdout.readline())
        process.send_signal(signal.SIGKILL)
    wait_until_gone(pid)
