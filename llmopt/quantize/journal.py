"""The finished blocks of a run on disk, so that a run that was killed goes on where it stopped.

Layout of the directory, a hidden neighbour of the output:

    run.json                          the fingerprint of the run
    lock                              held by the process that works on it
    <scheme>/block-00003.safetensors  what a job finished of block 3
    hidden/<stream>-00004.safetensors the hidden states that enter block 4

Knows nothing of how blocks are made. Laws: a file appears under its name only when it is whole and
on the disk; blocks count as finished up to the first one that any job lacks; another run's journal
is never used.
"""

import fcntl
import json
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from llmopt.errors import OutputError
from llmopt.formats.staging import output_errors
from llmopt.quantize.options import ModuleRecord
from llmopt.quantize.packing import PackedBlock, PackedModule

_RUN_FILE = "run.json"
_METADATA_KEY = "llmopt"


def journal_path(out: Path) -> Path:
    """Return where the journal of a run that makes `out` lies."""
    return out.parent / f".{out.name}.resume"


class Journal:
    """The journal of one run, open: `with Journal(path, fingerprint, schemes, restart=...)`.

    Raises `OutputError` where another run's journal lies, unless `restart`, where another process
    works on it, and where it cannot be written.
    """

    def __init__(
        self, path: Path, fingerprint: str, schemes: Sequence[str], *, restart: bool = False
    ) -> None:
        self.path = path
        self._fingerprint = fingerprint
        self._schemes = tuple(schemes)
        self._restart = restart
        self._lock: int | None = None
        self.finished_blocks = 0

    def __enter__(self) -> Self:
        with output_errors(self.path):
            self.path.mkdir(parents=True, exist_ok=True)
            self._lock = os.open(self.path / "lock", os.O_RDWR | os.O_CREAT, 0o644)
            try:
                fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                os.close(self._lock)
                raise OutputError(
                    f"another process is working on {self.path}",
                    "Wait for it, or choose another output directory.",
                ) from None
        try:
            self._open()
        except BaseException:
            os.close(self._lock)
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        assert self._lock is not None, "the journal is a context manager"
        if kind is None or self.finished_blocks == 0:
            shutil.rmtree(self.path, ignore_errors=True)
        os.close(self._lock)

    def write_hidden(self, stream: str, block: int, hidden: Tensor) -> None:
        """Keep the hidden states [T, C] of a stream that enter `block`."""
        self._save(self._hidden_path(stream, block), {"hidden": hidden}, {})

    def read_hidden(self, stream: str, block: int) -> Tensor | None:
        """Return the hidden states that enter `block`, or None if they were not kept."""
        path = self._hidden_path(stream, block)
        return load_file(path)["hidden"] if path.exists() else None

    def write_block(self, index: int, blocks: Mapping[str, PackedBlock]) -> None:
        """Keep what every job made of a block, by scheme. The block is finished when this returns;
        hidden states that entered it are dropped.
        """
        for scheme, block in blocks.items():
            record = {
                "modules": [asdict(module) for module in block.modules],
                "replaced": block.replaced,
                "seconds": block.seconds,
                "shared_seconds": block.shared_seconds,
            }
            self._save(self._block_path(scheme, index), block.tensors, record)
        self.finished_blocks = index + 1
        for old in self.path.glob(f"hidden/*-{index:05d}.safetensors"):
            old.unlink(missing_ok=True)

    def read_block(self, scheme: str, index: int) -> PackedBlock:
        """Return a finished block of a job; its tensors are mapped, not read."""
        path = self._block_path(scheme, index)
        with safe_open(path, framework="pt") as file:
            record = json.loads(file.metadata()[_METADATA_KEY])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no dict
        modules = tuple(_module(values) for values in record.pop("modules"))
        return PackedBlock(tensors, modules, **record)

    def _open(self) -> None:
        found = self._read_fingerprint()
        is_others = found is not None and found != self._fingerprint
        if is_others and any(self.path.glob("*/block-*.safetensors")) and not self._restart:
            raise OutputError(
                f"{self.path} holds the finished blocks of another run: its model, calibration "
                "data or options differ",
                "Run that command again to finish it, or add --restart to begin anew.",
            )
        if found != self._fingerprint:
            self._clear()
        self.finished_blocks = self._count_finished()

    def _read_fingerprint(self) -> str | None:
        try:
            return str(json.loads((self.path / _RUN_FILE).read_text())["fingerprint"])
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def _clear(self) -> None:
        with output_errors(self.path):
            for entry in self.path.iterdir():
                if entry.is_dir():
                    shutil.rmtree(entry)
                elif entry.name != "lock":
                    entry.unlink()
            content = json.dumps({"fingerprint": self._fingerprint}) + "\n"
            _write_durably(self.path / _RUN_FILE, content.encode())

    def _count_finished(self) -> int:
        count = 0
        while all(_is_whole(self._block_path(scheme, count)) for scheme in self._schemes):
            count += 1
        return count

    def _save(self, path: Path, tensors: Mapping[str, Tensor], record: Mapping[str, Any]) -> None:
        partial = path.with_suffix(".partial")
        with output_errors(path):
            path.parent.mkdir(exist_ok=True)
            save_file(dict(tensors), partial, metadata={_METADATA_KEY: json.dumps(record)})
            _sync(partial)
            partial.rename(path)
            _sync(path.parent)

    def _block_path(self, scheme: str, index: int) -> Path:
        return self.path / scheme / f"block-{index:05d}.safetensors"

    def _hidden_path(self, stream: str, block: int) -> Path:
        return self.path / "hidden" / f"{stream}-{block:05d}.safetensors"


def _module(values: Mapping[str, Any]) -> PackedModule:
    return PackedModule(**{**values, "record": ModuleRecord(**values["record"])})


def _is_whole(path: Path) -> bool:
    try:
        with safe_open(path, framework="pt") as file:
            return _METADATA_KEY in (file.metadata() or {})
    except (OSError, SafetensorError):
        return False


def _write_durably(path: Path, content: bytes) -> None:
    partial = path.with_suffix(".partial")
    partial.write_bytes(content)
    _sync(partial)
    partial.rename(path)
    _sync(path.parent)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
