"""Writing a GGUF file, one tensor at a time.

Knows nothing of models or of how blocks are chosen. The laws: the file appears under its final name
only when it is complete and has been read back; the same content gives the same bytes; memory holds
one tensor, because names, types and shapes are declared before any data.

Format: the GGUF specification of ggml, version 3.
"""

import hashlib
import os
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Self

import torch

from llmopt.errors import OutputError
from llmopt.formats.gguf_blocks import GgufWeight
from llmopt.formats.gguf_header import (
    GgufError,
    GgufField,
    TensorPlan,
    alignment_of,
    encode_header,
    map_header,
    round_up,
)
from llmopt.formats.staging import check_writable, output_errors


class GgufWriter:
    """Write a file: `with GgufWriter(path, metadata, plans) as writer: writer.add(name, data)`.

    Everything goes into a hidden sibling file that is renamed on success and removed on any error.
    Raises OutputError when the target exists, cannot be written, or the disk is (or would be) full.
    """

    def __init__(
        self,
        path: str | Path,
        metadata: Mapping[str, GgufField],
        tensors: Sequence[TensorPlan],
    ) -> None:
        self.path = Path(path)
        self._header = encode_header(metadata, tensors)
        self._alignment = alignment_of({key: field.value for key, field in metadata.items()})
        self._plans = list(tensors)
        self._digests: list[bytes] = []
        self._staging: Path | None = None
        self._stream: BinaryIO | None = None

    @property
    def num_bytes(self) -> int:
        """Size of the finished file."""
        data = sum(round_up(plan.num_bytes, self._alignment) for plan in self._plans)
        return len(self._header) + data

    @property
    def staging(self) -> Path:
        """The file that is being filled."""
        assert self._staging is not None, "the writer is a context manager"
        return self._staging

    def __enter__(self) -> Self:
        check_writable(self.path, self.num_bytes)
        with output_errors(self.path):
            descriptor, name = tempfile.mkstemp(
                prefix=f".{self.path.name}.", suffix=".partial", dir=self.path.parent
            )
            self._staging, self._stream = Path(name), os.fdopen(descriptor, "wb")
        try:
            with output_errors(self.path):
                self._staging.chmod(0o644)
                self._stream.write(self._header)
        except BaseException:
            self._discard()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            if kind is None:
                self.seal()
                with output_errors(self.path):
                    self.staging.rename(self.path)
                    _sync(self.path.parent)
        finally:
            self._discard()

    def add(self, name: str, data: torch.Tensor | GgufWeight) -> None:
        """Write the next tensor: blocks of the declared type, or numbers of its very dtype."""
        plan = self._plans[len(self._digests)]
        assert name == plan.name, f"{plan.name} was declared to come next, not {name}"
        assert tuple(data.shape) == plan.shape, f"{name} was declared as {plan.shape}"
        content = _content(data, plan)
        assert len(content) == plan.num_bytes, f"{name} fills its place"
        self._digests.append(hashlib.sha256(content).digest())
        padding = round_up(len(content), self._alignment) - len(content)
        assert self._stream is not None, "a sealed file takes no more tensors"
        with output_errors(self.path):
            self._stream.write(content)
            self._stream.write(bytes(padding))

    def seal(self) -> Path:
        """Finish the file, still unpublished, and read it back; returns where it is.

        Whoever examines it and raises inside the `with` block leaves nothing behind. Raises
        OutputError if what is on the disk is not what was written.
        """
        if self._stream is not None:
            assert len(self._digests) == len(self._plans), "every declared tensor was written"
            with output_errors(self.path):
                self._stream.flush()
                os.fsync(self._stream.fileno())
                self._stream.close()
            self._stream = None
            self._verify()
        return self.staging

    def _verify(self) -> None:
        try:
            with output_errors(self.path):
                header, data = map_header(self.staging)
        except GgufError as error:
            raise self._mismatch(str(error)) from error
        with data, memoryview(data) as view:
            for plan, digest in zip(self._plans, self._digests, strict=True):
                place = header.tensors[plan.name]
                with view[place.offset : place.offset + place.num_bytes] as content:
                    if hashlib.sha256(content).digest() != digest:
                        raise self._mismatch(f"tensor {plan.name} differs")

    def _mismatch(self, reason: str) -> OutputError:
        return OutputError(
            f"{self.path} was read back and is not what was written ({reason})",
            "Check the disk, and write to another one.",
        )

    def _discard(self) -> None:
        if self._stream is not None:
            with suppress(OSError):  # what a full disk did not take is not wanted anymore
                self._stream.close()
            self._stream = None
        if self._staging is not None:
            self._staging.unlink(missing_ok=True)


def _content(data: torch.Tensor | GgufWeight, plan: TensorPlan) -> memoryview:
    if isinstance(data, GgufWeight):
        assert data.type == plan.type, f"{plan.name} was declared as {plan.type.name}"
        blocks = data.blocks
    else:
        assert data.dtype == plan.type.dtype, f"{plan.name} was declared as {plan.type.name}"
        blocks = data.detach().contiguous().view(-1).view(torch.uint8)
    return blocks.cpu().contiguous().view(-1).numpy().data


def _sync(directory: Path) -> None:
    """Force a directory's entries to the disk."""
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
