"""Matrix products of other libraries, where they are installed, for the same weights.

Knows their interfaces, and no kernel of ours. The law: a peer gets the weight that ours gets, code
for code, and whatever it raises is its row.

Of torch: tinygemm's int4 product (aten/src/ATen/native/cuda/int4mm.cu), which takes w = (code - 8)
* scale + zero with bfloat16 scales, and the column of even number in the high half of a byte.
GemLite: README of mobiusml/gemlite. bitsandbytes: `functional.quantize_4bit`, `matmul_4bit`.
"""

import importlib
import importlib.metadata
import importlib.util
from collections.abc import Iterator
from typing import Any

import torch

from bench.case import Contender
from llmopt.formats.codebook import CodebookWeight
from llmopt.formats.quantized import QuantizedWeight

PEERS = ("gemlite", "bitsandbytes")
_INNER_K_TILES = 8


def peer_versions() -> dict[str, str]:
    """The peers that are installed here."""
    found = [name for name in PEERS if importlib.util.find_spec(name) is not None]
    return {name: importlib.metadata.version(name) for name in found}


def uniform_peers(x: torch.Tensor, weight: QuantizedWeight, traffic: int) -> Iterator[Contender]:
    """Who else multiplies x [T, K] by a symmetric weight of 4 bits on a GPU.

    traffic: bytes of inputs and outputs.
    """
    if x.device.type != "cuda" or weight.spec.bits != 4:
        return
    num_bytes = traffic + weight.codes.numel() // 2 + weight.scales.nbytes
    yield Contender("tinygemm", _Tinygemm(x, weight), weight.scales.nbytes + num_bytes)
    if importlib.util.find_spec("gemlite") is not None:
        yield Contender("gemlite", _Gemlite(x, weight), num_bytes)


def codebook_peers(x: torch.Tensor, weight: CodebookWeight, traffic: int) -> Iterator[Contender]:
    """Who else multiplies x [T, K] by an NF4 weight on a GPU."""
    if x.device.type == "cuda" and importlib.util.find_spec("bitsandbytes") is not None:
        num_bytes = traffic + weight.codes.numel() // 2 + 4 * weight.codes.numel() // 64
        yield Contender("bitsandbytes", _Bitsandbytes(x, weight), num_bytes)


class _Tinygemm:
    """Packed at the first call, which no one times: what it raises is told there."""

    def __init__(self, x: torch.Tensor, weight: QuantizedWeight) -> None:
        self._x, self._weight = x, weight
        self._packed: tuple[torch.Tensor, int, torch.Tensor] | None = None

    def __call__(self) -> torch.Tensor:
        if self._packed is None:
            self._packed = self._pack()
        out: torch.Tensor = torch.ops.aten._weight_int4pack_mm(self._x, *self._packed)
        return out

    def _pack(self) -> tuple[torch.Tensor, int, torch.Tensor]:
        codes, scales = self._weight.codes, self._weight.scales.bfloat16()
        pairs = ((codes[:, ::2] << 4) | codes[:, 1::2]).contiguous()
        words = torch.ops.aten._convert_weight_to_int4pack(pairs, _INNER_K_TILES)
        per_group = torch.stack([scales, torch.zeros_like(scales)], dim=-1)  # [O, G, 2]
        group_size = codes.shape[1] // scales.shape[1]
        return words, group_size, per_group.transpose(0, 1).contiguous()


class _Gemlite:
    def __init__(self, x: torch.Tensor, weight: QuantizedWeight) -> None:
        self._x, self._weight = x, weight
        self._layer: Any = None

    def __call__(self) -> torch.Tensor:
        if self._layer is None:
            self._layer = self._make()
        out: torch.Tensor = self._layer(self._x)
        return out

    def _make(self) -> Any:
        core: Any = importlib.import_module("gemlite.core")
        weight, (rows, columns) = self._weight, self._weight.shape
        layer = core.GemLiteLinear(
            weight.spec.bits,
            group_size=weight.spec.columns_per_group(columns),
            in_features=columns,
            out_features=rows,
            input_dtype=core.DType.BF16,
            output_dtype=core.DType.BF16,
        )
        scales = weight.scales.bfloat16()
        layer.pack(weight.codes, scales, torch.full_like(scales, weight.spec.midpoint), None)
        return layer


class _Bitsandbytes:
    def __init__(self, x: torch.Tensor, weight: CodebookWeight) -> None:
        self._x, self._weight = x, weight
        self._stored: tuple[Any, Any] | None = None

    def __call__(self) -> torch.Tensor:
        library: Any = importlib.import_module("bitsandbytes")
        if self._stored is None:
            dense = self._weight.dequantize(torch.bfloat16)
            self._stored = library.functional.quantize_4bit(
                dense, blocksize=self._weight.block_size, quant_type="nf4"
            )
        values, state = self._stored
        out: torch.Tensor = library.matmul_4bit(self._x, values.t(), quant_state=state)
        return out
