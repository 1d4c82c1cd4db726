"""Logits that llama.cpp computes from a GGUF file, in a process of its own.

Knows the worker's pipes and nothing of llama.cpp's interface. llama-cpp-python is taken from where
this program runs, else from the environment that `llmopt backend install llama.cpp` makes. It runs
as a process in both cases, because llama.cpp ends its process when it fails. The law: a worker that
dies is an error with its own last words, and none outlives the `with` block.
"""

import contextlib
import importlib.util
import io
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import torch
from torch import Tensor

from llmopt.environment.catalogue import find_environment
from llmopt.environment.installation import process_variables, require_python
from llmopt.errors import BackendError, UsageError
from llmopt.formats.gguf import GgufCheckpoint
from llmopt.formats.weights import scheme
from llmopt.models.loader import DTYPES
from llmopt.quality.source import rows_per_chunk
from llmopt.quality.windows import Window

WORKER = Path(__file__).parent / "llama_cpp_worker.py"
_MAGIC = b"GGUF"
_GRACE_S = 5.0  # between closing the worker's input and ending it
_REASON_CHARACTERS = 300


class LlamaCppLogits:
    """Logits of a GGUF file in llama.cpp, with its own defaults: a float16 cache, for example."""

    def __init__(
        self, worker: "subprocess.Popen[bytes]", messages: IO[bytes], *, name: str, scheme: str
    ) -> None:
        """Wait until the worker has loaded the file; its standard error goes to `messages`.

        Raises BackendError if it does not.
        """
        assert worker.stdin is not None, "a pipe was asked for"
        assert isinstance(worker.stdout, io.BufferedReader), "a buffered pipe was asked for"
        self._worker, self._messages = worker, messages
        self._requests, self._answers = worker.stdin, worker.stdout
        self.name = name
        self.scheme = scheme
        line = self._answers.readline()
        if not line:
            raise self._death()
        description: dict[str, Any] = json.loads(line)
        self.version: str = description["version"]
        self._vocab_size: int = description["vocab_size"]
        self._max_tokens: int = description["max_tokens"]

    @property
    def vocab_size(self) -> int:
        """Columns of the logits."""
        return self._vocab_size

    @property
    def max_tokens(self) -> int:
        """Tokens that the model was trained to read at once."""
        return self._max_tokens

    def chunks(self, window: Window) -> Iterator[Tensor]:
        """Logits of the rows that have a scored token next. Raises BackendError if it dies.

        Read them to the end before the next window is asked for: they share one pipe.
        """
        request = {"token_ids": window.token_ids.tolist(), "num_scored": window.num_scored}
        try:
            self._requests.write(json.dumps(request).encode() + b"\n")
            self._requests.flush()
        except OSError as error:
            raise self._death() from error
        most = rows_per_chunk(self._vocab_size)
        for start in range(0, window.num_scored, most):
            yield self._read(min(most, window.num_scored - start))

    def _read(self, num_rows: int) -> Tensor:
        received = bytearray(num_rows * self._vocab_size * torch.float32.itemsize)
        rest = memoryview(received)
        while rest:
            num_bytes = self._answers.readinto(rest)
            if not num_bytes:
                raise self._death()
            rest = rest[num_bytes:]
        return torch.frombuffer(received, dtype=torch.float32).view(num_rows, self._vocab_size)

    def _death(self) -> BackendError:
        """Why the worker is gone: its last words, and the signal or status that it ended with."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._worker.wait(timeout=_GRACE_S)
        self._messages.seek(0)
        lines = self._messages.read().decode(errors="replace").splitlines()
        words = next((line.strip() for line in reversed(lines) if line.strip()), "it said nothing")
        status = self._worker.returncode or 0
        ended = f"by signal {-status}" if status < 0 else f"with status {status}"
        return BackendError(
            f"llama.cpp's process ended {ended}: {words[:_REASON_CHARACTERS]}",
            "Try the file with llama.cpp's own tools; a large model may need more memory.",
        )


@contextlib.contextmanager
def open_llama_cpp(path: Path, *, num_threads: int) -> Iterator[LlamaCppLogits]:
    """A GGUF file in llama.cpp, for as long as the `with` block lasts.

    Raises UsageError (not a GGUF file), CheckpointError (a damaged one) and BackendError
    (llama-cpp-python is nowhere, llama.cpp does not load the file).
    """
    _check_file(path)
    reader = GgufCheckpoint(path)
    stored = scheme(reader, DTYPES[reader.config["dtype"]])
    command = [str(find_llama_cpp()), str(WORKER), str(path.resolve()), str(num_threads)]
    with tempfile.TemporaryFile() as messages:
        worker = _start(command, messages)
        try:
            yield LlamaCppLogits(worker, messages, name=path.name, scheme=stored)
        finally:
            _end(worker)


def find_llama_cpp() -> Path:
    """The interpreter that has llama-cpp-python: this one, or that of the environment for it.

    Raises BackendError, with the command that makes the environment, if there is none.
    """
    if importlib.util.find_spec("llama_cpp") is not None:
        return Path(sys.executable)
    return require_python(find_environment("llama.cpp"))


def _check_file(path: Path) -> None:
    remedy = "Give the path of a GGUF file; `llmopt quantize` writes them."
    try:
        with path.open("rb") as stream:
            magic = stream.read(len(_MAGIC))
    except OSError as error:
        raise UsageError(
            f"llama.cpp reads GGUF files, and {path} cannot be read ({error.strerror})", remedy
        ) from error
    if magic != _MAGIC:
        raise UsageError(f"llama.cpp reads GGUF files, and {path} is none", remedy)


def _start(command: list[str], messages: IO[bytes]) -> "subprocess.Popen[bytes]":
    try:
        return subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=messages,
            env=process_variables(find_environment("llama.cpp")),
        )
    except OSError as error:
        raise BackendError(
            f"{command[0]} cannot be started ({error.strerror})",
            "Run `llmopt backend remove llama.cpp` and `llmopt backend install llama.cpp`.",
        ) from error


def _end(worker: "subprocess.Popen[bytes]") -> None:
    """Close the worker's pipes, which ends it, and wait for it."""
    for pipe in (worker.stdin, worker.stdout):
        if pipe is not None:
            with contextlib.suppress(OSError):
                pipe.close()
    try:
        worker.wait(timeout=_GRACE_S)
    except subprocess.TimeoutExpired:
        worker.kill()
        worker.wait()
