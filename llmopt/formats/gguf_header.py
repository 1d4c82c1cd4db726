"""The header of a GGUF file: its metadata and its table of tensors, from bytes.

Knows nothing about models. The law: a header is untrusted, so every length is checked against the
bytes that are there before it is used; whatever does not fit raises `GgufError`, which says where.

Format: the GGUF specification of ggml, versions 2 and 3, little-endian.
"""

import math
import struct
from dataclasses import dataclass

from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, GGUFValueType

MAGIC = b"GGUF"
SUPPORTED_VERSIONS = (2, 3)
DEFAULT_ALIGNMENT = 32
MAX_DIMENSIONS = 4
MAX_ARRAY_DEPTH = 4

GgufValue = int | float | bool | str | list["GgufValue"]

_SCALARS = {
    GGUFValueType.UINT8: "B",
    GGUFValueType.INT8: "b",
    GGUFValueType.UINT16: "H",
    GGUFValueType.INT16: "h",
    GGUFValueType.UINT32: "I",
    GGUFValueType.INT32: "i",
    GGUFValueType.UINT64: "Q",
    GGUFValueType.INT64: "q",
    GGUFValueType.FLOAT32: "f",
    GGUFValueType.FLOAT64: "d",
    GGUFValueType.BOOL: "?",
}


class GgufError(ValueError):
    """The bytes are not a GGUF file that this reader understands."""


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """One row of the tensor table."""

    name: str
    shape: tuple[int, ...]  # row-major: outermost dimension first, unlike in the file
    quantization: GGMLQuantizationType
    offset: int  # of the first byte, from the start of the file
    num_bytes: int


@dataclass(frozen=True, slots=True)
class GgufHeader:
    """Everything in front of the tensor data."""

    metadata: dict[str, GgufValue]
    tensors: dict[str, TensorInfo]


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
    start = _round_up(cursor.position, _alignment(metadata))
    tensors = {row.name: _place(row, start, len(data)) for row in rows}
    if len(tensors) != num_tensors:
        raise GgufError("two tensors have the same name")
    return GgufHeader(metadata, tensors)


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

    def value_type(self) -> GGUFValueType:
        code = self.number("I")
        try:
            return GGUFValueType(code)
        except ValueError as error:
            raise GgufError(f"unknown value type {code} before byte {self.position:,}") from error

    def value(self, kind: GGUFValueType, depth: int = 0) -> GgufValue:
        if kind == GGUFValueType.STRING:
            return self.string()
        if kind == GGUFValueType.ARRAY:
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
    name = cursor.string()
    num_dimensions = cursor.number("I")
    if num_dimensions > MAX_DIMENSIONS:
        raise GgufError(
            f"tensor {name} has {num_dimensions} dimensions, more than {MAX_DIMENSIONS}"
        )
    shape = tuple(reversed([cursor.number("Q") for _ in range(num_dimensions)]))
    code, offset = cursor.number("I"), cursor.number("Q")
    try:
        quantization = GGMLQuantizationType(code)
    except ValueError as error:
        raise GgufError(f"tensor {name} has the unknown type {code}") from error
    block, block_bytes = GGML_QUANT_SIZES[quantization]
    if (shape[-1] if shape else 1) % block:
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


def _alignment(metadata: dict[str, GgufValue]) -> int:
    alignment = metadata.get("general.alignment", DEFAULT_ALIGNMENT)
    if not isinstance(alignment, int) or alignment <= 0 or alignment & (alignment - 1):
        raise GgufError(f"general.alignment is {alignment!r}, not a power of two")
    return alignment


def _round_up(position: int, multiple: int) -> int:
    return -(-position // multiple) * multiple
