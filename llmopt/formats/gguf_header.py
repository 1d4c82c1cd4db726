"""The header of a GGUF file: its metadata and its table of tensors, from bytes and to bytes.

Knows nothing about models. The laws: a header is untrusted, so every length is checked against the
bytes that are there before it is used, and whatever does not fit raises `GgufError`, which says
where; what `encode_header` writes, `parse_header` reads back.

Format: the GGUF specification of ggml, versions 2 and 3, little-endian; version 3 is written.
"""

import math
import mmap
import os
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path
from typing import TYPE_CHECKING, cast

from llmopt.formats.gguf_blocks import GgmlType

if TYPE_CHECKING:
    from gguf import GGMLQuantizationType

MAGIC = b"GGUF"
VERSION = 3
SUPPORTED_VERSIONS = (2, 3)
ALIGNMENT_KEY = "general.alignment"
DEFAULT_ALIGNMENT = 32
MAX_DIMENSIONS = 4
MAX_ARRAY_DEPTH = 4

GgufValue = int | float | bool | str | list["GgufValue"]


class GgufValueType(IntEnum):
    """Types of metadata values, by their numbers in files."""

    UINT8 = 0
    INT8 = 1
    UINT16 = 2
    INT16 = 3
    UINT32 = 4
    INT32 = 5
    FLOAT32 = 6
    BOOL = 7
    STRING = 8
    ARRAY = 9
    UINT64 = 10
    INT64 = 11
    FLOAT64 = 12


_SCALARS = {
    GgufValueType.UINT8: "B",
    GgufValueType.INT8: "b",
    GgufValueType.UINT16: "H",
    GgufValueType.INT16: "h",
    GgufValueType.UINT32: "I",
    GgufValueType.INT32: "i",
    GgufValueType.UINT64: "Q",
    GgufValueType.INT64: "q",
    GgufValueType.FLOAT32: "f",
    GgufValueType.FLOAT64: "d",
    GgufValueType.BOOL: "?",
}


class GgufError(ValueError):
    """The bytes are not a GGUF file that this reader understands."""


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """One row of the tensor table."""

    name: str
    shape: tuple[int, ...]  # row-major: outermost dimension first, unlike in the file
    quantization: "GGMLQuantizationType"
    offset: int  # of the first byte, from the start of the file
    num_bytes: int


@dataclass(frozen=True, slots=True)
class GgufHeader:
    """Everything in front of the tensor data."""

    metadata: dict[str, GgufValue]
    tensors: dict[str, TensorInfo]


def map_header(path: Path) -> tuple[GgufHeader, mmap.mmap]:
    """The header of a file and its bytes, mapped. Raises GgufError, OSError."""
    with path.open("rb") as file:
        if not os.fstat(file.fileno()).st_size:
            raise GgufError("it is empty")
        data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    try:
        with memoryview(data) as view:
            return parse_header(view), data
    except GgufError:
        data.close()
        raise


def parse_header(data: memoryview) -> GgufHeader:
    """Read the header of a whole file (`data`, usually a memory map).

    Raises GgufError: wrong magic or version, a length beyond the end, an unknown type, a tensor
    whose data are not all there.
    """
    cursor = _Cursor(data)
    if cursor.take(4) != MAGIC:
        raise GgufError("it does not begin with the GGUF magic")
    version = cursor.number("I")
    if version not in SUPPORTED_VERSIONS:
        raise GgufError(f"GGUF version {version} is not one of {SUPPORTED_VERSIONS}")
    num_tensors, num_values = cursor.number("Q"), cursor.number("Q")
    metadata: dict[str, GgufValue] = {}
    for _ in range(num_values):
        key = cursor.string()
        metadata[key] = cursor.value(cursor.value_type())
    rows = [_tensor_row(cursor) for _ in range(num_tensors)]
    start = round_up(cursor.position, alignment_of(metadata))
    tensors = {row.name: _place(row, start, len(data)) for row in rows}
    if len(tensors) != num_tensors:
        raise GgufError("two tensors have the same name")
    return GgufHeader(metadata, tensors)


@dataclass(frozen=True, slots=True)
class GgufField:
    """A value to write and the type to write it as; a list becomes an array of that type."""

    type: GgufValueType
    value: GgufValue

    @classmethod
    def uint32(cls, value: int) -> "GgufField":
        """A count, a size or a token id."""
        return cls(GgufValueType.UINT32, value)

    @classmethod
    def float32(cls, value: float) -> "GgufField":
        """A real number."""
        return cls(GgufValueType.FLOAT32, value)

    @classmethod
    def boolean(cls, value: bool) -> "GgufField":
        """A flag."""
        return cls(GgufValueType.BOOL, value)

    @classmethod
    def string(cls, value: str) -> "GgufField":
        """A text."""
        return cls(GgufValueType.STRING, value)

    @classmethod
    def strings(cls, values: Sequence[str]) -> "GgufField":
        """An array of texts."""
        return cls(GgufValueType.STRING, list(values))

    @classmethod
    def int32s(cls, values: Sequence[int]) -> "GgufField":
        """An array of integers."""
        return cls(GgufValueType.INT32, list(values))

    @classmethod
    def float32s(cls, values: Sequence[float]) -> "GgufField":
        """An array of real numbers."""
        return cls(GgufValueType.FLOAT32, list(values))

    @classmethod
    def booleans(cls, values: Sequence[bool]) -> "GgufField":
        """An array of flags."""
        return cls(GgufValueType.BOOL, list(values))

    def encode(self) -> bytes:
        """Type and value, as they follow the key."""
        if not isinstance(self.value, list):
            return struct.pack("<I", self.type) + _encode_items(self.type, [self.value])
        head = struct.pack("<IIQ", GgufValueType.ARRAY, self.type, len(self.value))
        return head + _encode_items(self.type, self.value)


@dataclass(frozen=True, slots=True)
class TensorPlan:
    """A tensor that is going to be written: a vector, or a matrix [O, K] of whole blocks."""

    name: str
    shape: tuple[int, ...]
    type: GgmlType

    @property
    def num_bytes(self) -> int:
        """Bytes of its data, without padding. Raises QuantizationError: rows of broken blocks."""
        return math.prod(self.shape[:-1]) * self.type.row_bytes(self.shape[-1])


def encode_header(metadata: Mapping[str, GgufField], tensors: Sequence[TensorPlan]) -> bytes:
    """Everything in front of the tensor data, padded to where they begin.

    The data of the tensors follow in this order, each padded to the alignment, which is the
    metadata's `general.alignment` or 32.
    """
    alignment = alignment_of({key: field.value for key, field in metadata.items()})
    parts = [MAGIC, struct.pack("<IQQ", VERSION, len(tensors), len(metadata))]
    for key, field in metadata.items():
        parts += [_encode_string(key), field.encode()]
    offset = 0
    for plan in tensors:
        dimensions = tuple(reversed(plan.shape))
        layout = f"<I{len(dimensions)}QIQ"
        row = struct.pack(layout, len(dimensions), *dimensions, plan.type.id, offset)
        parts += [_encode_string(plan.name), row]
        offset += round_up(plan.num_bytes, alignment)
    header = b"".join(parts)
    return header.ljust(round_up(len(header), alignment), b"\0")


def _encode_items(kind: GgufValueType, values: list[GgufValue]) -> bytes:
    if kind == GgufValueType.STRING:
        return b"".join(_encode_string(cast(str, value)) for value in values)
    return struct.pack(f"<{len(values)}{_SCALARS[kind]}", *values)


def _encode_string(text: str) -> bytes:
    content = text.encode("utf-8")
    return struct.pack("<Q", len(content)) + content


def byte_shape(info: TensorInfo) -> tuple[int, ...]:
    """Shape of a tensor's data as rows of bytes: the last dimension holds whole blocks."""
    return (*info.shape[:-1], info.num_bytes // max(1, math.prod(info.shape[:-1])))


class _Cursor:
    """A position in the bytes that can never pass their end."""

    def __init__(self, data: memoryview) -> None:
        self._data = data
        self.position = 0

    def take(self, size: int) -> bytes:
        if size > len(self._data) - self.position:
            raise GgufError(f"it ends inside its header, at byte {len(self._data):,}")
        chunk = bytes(self._data[self.position : self.position + size])
        self.position += size
        return chunk

    def number(self, code: str) -> int:
        return int(struct.unpack(f"<{code}", self.take(struct.calcsize(code)))[0])

    def string(self) -> str:
        try:
            return self.take(self.number("Q")).decode("utf-8")
        except UnicodeDecodeError as error:
            raise GgufError(f"a string before byte {self.position:,} is not UTF-8") from error

    def value_type(self) -> GgufValueType:
        code = self.number("I")
        try:
            return GgufValueType(code)
        except ValueError as error:
            raise GgufError(f"unknown value type {code} before byte {self.position:,}") from error

    def value(self, kind: GgufValueType, depth: int = 0) -> GgufValue:
        if kind == GgufValueType.STRING:
            return self.string()
        if kind == GgufValueType.ARRAY:
            return self._array(depth + 1)
        return self._scalars(_SCALARS[kind], 1)[0]

    def _array(self, depth: int) -> list[GgufValue]:
        if depth > MAX_ARRAY_DEPTH:
            raise GgufError(f"arrays are nested more than {MAX_ARRAY_DEPTH} deep")
        kind, length = self.value_type(), self.number("Q")
        if kind in _SCALARS:
            return self._scalars(_SCALARS[kind], length)
        return [self.value(kind, depth) for _ in range(length)]

    def _scalars(self, code: str, count: int) -> list[GgufValue]:
        chunk = self.take(count * struct.calcsize(code))
        return list(struct.unpack(f"<{count}{code}", chunk))


def _tensor_row(cursor: _Cursor) -> TensorInfo:
    """One row of the table; its offset is still relative to the start of the tensor data."""
    from gguf import GGML_QUANT_SIZES, GGMLQuantizationType  # where nothing is read, not needed

    name = cursor.string()
    num_dimensions = cursor.number("I")
    if num_dimensions > MAX_DIMENSIONS:
        raise GgufError(
            f"tensor {name} has {num_dimensions} dimensions, more than {MAX_DIMENSIONS}"
        )
    shape = tuple(reversed([cursor.number("Q") for _ in range(num_dimensions)]))
    if 0 in shape or not shape:
        raise GgufError(f"tensor {name} is empty")
    code, offset = cursor.number("I"), cursor.number("Q")
    try:
        quantization = GGMLQuantizationType(code)
    except ValueError as error:
        raise GgufError(f"tensor {name} has the unknown type {code}") from error
    block, block_bytes = GGML_QUANT_SIZES[quantization]
    if shape[-1] % block:
        raise GgufError(f"tensor {name} has rows of {shape[-1]}, not whole blocks of {block}")
    num_bytes = math.prod(shape) // block * block_bytes
    return TensorInfo(name, shape, quantization, offset, num_bytes)


def _place(row: TensorInfo, start: int, file_bytes: int) -> TensorInfo:
    offset = start + row.offset
    if offset + row.num_bytes > file_bytes:
        raise GgufError(
            f"it is cut short: tensor {row.name} ends at byte {offset + row.num_bytes:,} "
            f"and the file has {file_bytes:,}"
        )
    return TensorInfo(row.name, row.shape, row.quantization, offset, row.num_bytes)


def alignment_of(metadata: Mapping[str, GgufValue]) -> int:
    """To what the tensors' places in a file are rounded. Raises GgufError: not a power of two."""
    alignment = metadata.get(ALIGNMENT_KEY, DEFAULT_ALIGNMENT)
    if not isinstance(alignment, int) or alignment <= 0 or alignment & (alignment - 1):
        raise GgufError(f"general.alignment is {alignment!r}, not a power of two")
    return alignment


def round_up(position: int, multiple: int) -> int:
    """The next multiple, or the position itself if it is one."""
    return -(-position // multiple) * multiple
