"""The JSON that bitsandbytes keeps beside the codes of a 4-bit layer, as a tensor of bytes.

Knows nothing of the layer's other tensors. The law: bytes are untrusted, and a value that makes no
sense is a CheckpointError that names the layer.
"""

import json
from dataclasses import dataclass
from typing import Any, get_args

import torch

from llmopt.errors import CheckpointError
from llmopt.formats.codebook import BLOCK_SIZES, CodebookKind

_MOST_BYTES = 4096  # real ones have some 200


@dataclass(frozen=True, slots=True)
class QuantState:
    """What is needed to read a layer's codes.

    dtype: name of the torch dtype to which readers dequantize
    shape: (O, K)
    nested: block size and offset of double-quantized scales, or None for plain ones
    """

    kind: CodebookKind
    block_size: int
    dtype: str
    shape: tuple[int, int]
    nested: tuple[int, float] | None

    @property
    def num_blocks(self) -> int:
        """Scales of the layer."""
        return -(-self.shape[0] * self.shape[1] // self.block_size)

    def encode(self) -> torch.Tensor:
        """As uint8 [bytes], byte for byte as bitsandbytes writes it."""
        state: dict[str, Any] = {
            "quant_type": self.kind,
            "blocksize": self.block_size,
            "dtype": self.dtype,
            "shape": self.shape,
        }
        if self.nested is not None:
            state["nested_blocksize"], offset = self.nested
            state["nested_dtype"] = "float32"
            state["nested_offset"] = offset
        return torch.tensor(list(json.dumps(state).encode()), dtype=torch.uint8)

    @classmethod
    def decode(cls, module: str, data: torch.Tensor) -> "QuantState":
        """Invert `encode` for the layer `module`. Raises CheckpointError."""
        try:
            if data.dtype != torch.uint8 or data.numel() > _MOST_BYTES:
                raise ValueError(f"{data.numel()} values of {data.dtype}")
            state = json.loads(data.numpy().tobytes())
            rows, columns = (_positive(size) for size in state["shape"])
            nested = None
            if "nested_blocksize" in state:
                nested = _block_size(state["nested_blocksize"]), _offset(state["nested_offset"])
            block_size = _block_size(state["blocksize"])
            return cls(
                _kind(state["quant_type"]), block_size, str(state["dtype"]), (rows, columns), nested
            )
        except (ValueError, KeyError, TypeError, OverflowError, RecursionError) as error:
            raise CheckpointError(
                f"layer {module} has an unusable quant_state ({type(error).__name__}: {error})",
                "The file is damaged; fetch or make the checkpoint again.",
            ) from error


def _kind(value: Any) -> CodebookKind:
    if value not in get_args(CodebookKind):
        raise ValueError(f"the codebook {value!r}")
    kind: CodebookKind = value
    return kind


def _positive(value: Any) -> int:
    if type(value) is not int or value < 1:
        raise ValueError(f"a size of {value!r}")
    return value


def _block_size(value: Any) -> int:
    if type(value) is not int or value not in BLOCK_SIZES:
        raise ValueError(f"a block size of {value!r}")
    return value


def _offset(value: Any) -> float:
    if type(value) is not float or not abs(value) <= torch.finfo(torch.float32).max:
        raise ValueError(f"an offset of {value!r}")
    return value
