"""A child process whose output is followed line by line and kept in a log.

Knows nothing of what runs. The law: when the caller is done with the child, by success, by failure
or by an interrupt, neither it nor anything that it started in its group is left running.
"""

import codecs
import contextlib
import os
import re
import signal
import subprocess
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import BinaryIO

LineCallback = Callable[[str], None]

GRACE_S = 5.0  # between asking a child to end and ending it
_ESCAPE = re.compile(r"\x1b\[[0-9;?]*[ -/]*[@-~]|\x1b\][^\x07]*\x07|[\x00-\x08\x0b-\x1f\x7f]")
_CHUNK = 1 << 16


def follow_process(
    command: Sequence[str | Path],
    *,
    variables: Mapping[str, str],
    log: Path,
    on_line: LineCallback,
    directory: Path | None = None,
) -> int:
    """Run a command to its end and return its exit status (negative: the signal that ended it).

    Standard output and error go to `log`, appended, and to `on_line` without control characters,
    one call for each line, and for each redrawing of a progress bar. `variables` is its whole
    environment, `directory` where it runs, if not here. Standard input stays open, and empty, as
    long as this process lives. Whatever is raised meanwhile, by `on_line` or a signal, ends the
    process group first.
    """
    with log.open("ab") as record:
        process = subprocess.Popen(
            [str(part) for part in command],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env=dict(variables),
            cwd=directory,
            start_new_session=True,
            bufsize=0,
        )
        try:
            for line in _lines(process, record):
                on_line(line)
            return process.wait()
        finally:
            _end_group(process)


def _lines(process: "subprocess.Popen[bytes]", record: BinaryIO) -> Iterator[str]:
    decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
    assert process.stdout is not None, "a pipe was asked for"
    rest = ""
    while chunk := os.read(process.stdout.fileno(), _CHUNK):
        record.write(chunk)
        record.flush()
        *complete, rest = re.split(r"[\r\n]+", rest + decoder.decode(chunk))
        yield from filter(None, map(plain_text, complete))
    if last := plain_text(rest + decoder.decode(b"", final=True)):
        yield last


def plain_text(line: str) -> str:
    """A line of a program's output without control characters."""
    return _ESCAPE.sub("", line).strip()


def _end_group(process: "subprocess.Popen[bytes]") -> None:
    """End what is left of the child's process group, first politely."""
    if process.poll() is None:
        _signal_group(process.pid, signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(timeout=GRACE_S)
    _signal_group(process.pid, signal.SIGKILL)
    process.wait()
    for pipe in (process.stdin, process.stdout):
        if pipe is not None:
            with contextlib.suppress(OSError):
                pipe.close()


def _signal_group(group: int, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(group, number)
