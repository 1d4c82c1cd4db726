"""How the console script ends, as its parent process sees it."""

import signal
import subprocess
import sys

import pytest

SCRIPT = """
import sys, time
import llmopt.cli
import llmopt.cli.app
from llmopt.errors import UsageError

def app():
    {body}

llmopt.cli.app.app = app
llmopt.cli.main()
"""


def start(body: str, **options: object) -> "subprocess.Popen[str]":
    command = [sys.executable, "-c", SCRIPT.format(body=body)]
    pipe = subprocess.PIPE
    return subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True, **options)


@pytest.mark.parametrize(
    ("body", "code", "said"),
    [
        ("print('fine')", 0, ""),
        ("sys.exit(3)", 3, ""),
        ("raise UsageError('it is wrong', 'Mend it.')", 2, "error: it is wrong"),
        ("raise PermissionError(13, 'Permission denied', 'x')", 2, "Permission denied: 'x'"),
        ("open('x' * 300)", 2, "error: [Errno 36] File name too long"),
        ("raise ValueError('a mistake')", 70, "ValueError: a mistake"),
    ],
)
def test_exit_codes(body: str, code: int, said: str) -> None:
    with start(body) as process:
        _, stderr = process.communicate(timeout=60)
    assert process.returncode == code
    assert said in stderr
    assert ("Traceback" in stderr) == (code == 70)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_ends_it_as_an_interrupt_does(number: signal.Signals) -> None:
    body = """
    try:
        print('ready', flush=True)
        time.sleep(60)
    finally:
        print('tidied up')"""
    # whoever runs the tests may ignore hang-ups, which children inherit
    with start(body, preexec_fn=lambda: signal.signal(number, signal.SIG_DFL)) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        process.send_signal(number)
        stdout, stderr = process.communicate(timeout=60)
    assert stdout == "tidied up\n"
    assert "interrupted" in stderr
    assert process.returncode == 128 + number


@pytest.mark.parametrize("lines", [1, 100_000])
def test_a_closed_pipe_has_the_code_that_shells_give_it(lines: int) -> None:
    process = start(f"sys.stdin.read(); print('line\\n' * {lines})", stdin=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stdin is not None
    assert process.stderr is not None
    process.stdout.close()
    process.stdin.close()  # now it may write
    assert process.wait(timeout=60) == 128 + signal.SIGPIPE
    assert process.stderr.read() == ""
    process.stderr.close()
