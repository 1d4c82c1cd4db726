"""The bitsandbytes checkpoint layouts: NF4 and FP4 ("4 bit"), and LLM.int8 ("8 bit").

Per linear layer X with O x K weights, as transformers and bitsandbytes save it (read by
transformers, vLLM and SGLang). 4 bit, with B blocks:

    X.weight            uint8   [O * K / 2, 1]  codes, row-major; the first of two in the high bits
    X.weight.absmax     float32 [B], or uint8 [B] if double quantized
    X.weight.quant_map  float32 [16]            the codebook
    X.weight.quant_state.bitsandbytes__nf4      uint8: JSON with block size, shape and dtype
    X.weight.nested_absmax, .nested_quant_map   float32 [ceil(B / 256)], [256] if double quantized

8 bit: X.weight int8 [O, K], X.SCB float32 [O] (127 times the scale of the row) and X.weight_format
uint8 0 (row-major).

The block size is in no config: each layer names its own. Files are untrusted: what contradicts
itself is a CheckpointError that names the layer. On a CPU with AVX512-BF16, bitsandbytes rearranges
and rounds a layer's absmax in its first forward pass and saves the wreck; such a file is refused.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, get_args

import torch

from llmopt.errors import CheckpointError
from llmopt.formats.codebook import CodebookKind, CodebookWeight, NestedAbsmax, codebook
from llmopt.formats.quant_state import QuantState
from llmopt.formats.quantized import QuantizedWeight, QuantSpec, StoredWeight

_INT8_ROWS = QuantSpec(8, None)
_LARGEST_CODE = 127
_HEAD_ONLY = ("lm_head",)


@dataclass(frozen=True, slots=True)
class CodebookFormat:
    """How a 4-bit bitsandbytes checkpoint stores its quantized layers (`WeightFormat`).

    dtype: name of the torch dtype in which readers compute and to which they dequantize; that of
    the original model.
    skipped: the modules that are left alone.
    """

    kind: CodebookKind
    double_quant: bool = False
    dtype: str = "bfloat16"
    skipped: tuple[str, ...] = _HEAD_ONLY

    limits: ClassVar[str] = "NF4 and FP4 weights"
    suffixes: ClassVar[tuple[str, ...]] = (
        "weight",
        "weight.absmax",
        "weight.quant_map",
        "weight.nested_absmax",
        "weight.nested_quant_map",
        "weight.quant_state.bitsandbytes__nf4",
        "weight.quant_state.bitsandbytes__fp4",
    )
    marker: ClassVar[str] = "weight.absmax"
    config_file: ClassVar[str | None] = None

    def label(self, method: str) -> str:  # noqa: ARG002 - as all schemes'
        """The scheme's name: "nf4", or "nf4-dq" if double quantized. The codes are always the
        nearest ones, so `method` adds nothing.
        """
        return f"{self.kind}-dq" if self.double_quant else self.kind

    def config(self, method: str) -> dict[str, Any]:
        """`quantization_config`, with the keys that transformers and vLLM read."""
        return _config(method, self.skipped) | {
            "load_in_4bit": True,
            "bnb_4bit_quant_type": self.kind,
            "bnb_4bit_use_double_quant": self.double_quant,
            "bnb_4bit_compute_dtype": self.dtype,
        }

    def pack(self, module: str, weight: StoredWeight) -> dict[str, torch.Tensor]:
        """The tensors of one layer, named `module.weight`, `module.weight.absmax` and so on."""
        assert isinstance(weight, CodebookWeight), "the format holds codebook weights"
        assert weight.kind == self.kind, "one checkpoint, one codebook"
        name, stored = f"{module}.weight", weight.stored_absmax
        assert isinstance(stored, NestedAbsmax) == self.double_quant, "one checkpoint, one way"
        tensors = {
            name: _pack_nibbles(weight.codes),
            f"{name}.quant_map": codebook(weight.kind),
        }
        if isinstance(stored, NestedAbsmax):
            tensors[f"{name}.absmax"] = stored.codes
            tensors[f"{name}.nested_absmax"] = stored.absmax
            # files cannot hold one tensor twice, and layers may share the table
            tensors[f"{name}.nested_quant_map"] = stored.table.clone()
            nested = stored.block_size, stored.offset
        else:
            tensors[f"{name}.absmax"], nested = stored, None
        state = QuantState(weight.kind, weight.block_size, self.dtype, weight.shape, nested)
        tensors[self._state_name(name)] = state.encode()
        return tensors

    def unpack(self, module: str, tensor: Callable[[str], torch.Tensor]) -> CodebookWeight:
        """Read one layer. Raises CheckpointError on anything that does not fit."""
        name = f"{module}.weight"
        state = QuantState.decode(module, tensor(self._state_name(name)))
        if state.kind != self.kind:
            raise _contradiction(module, f"a quant_state of {state.kind}", self.kind)
        rows, columns = state.shape
        packed = tensor(name)
        if packed.dtype != torch.uint8 or packed.numel() != (rows * columns + 1) // 2:
            raise _contradiction(module, f"codes {_describe(packed)}", f"{rows} x {columns} 4 bits")
        stored = self._stored_absmax(module, tensor, state)
        table = tensor(f"{name}.quant_map")
        if table.shape != (16,) or not torch.allclose(table.float(), codebook(self.kind)):
            raise CheckpointError(
                f"layer {module} has another codebook than {self.kind}",
                "Only the standard values can be read; quantize the original model again.",
            )
        codes = _unpack_nibbles(packed)[: rows * columns].view(rows, columns)
        return CodebookWeight(codes, stored, self.kind, state.block_size)

    def num_weights(self, module: str, shape: Callable[[str], tuple[int, ...]]) -> int:
        """Weights of one layer, from the shape of its codes: two in a byte."""
        return 2 * math.prod(shape(f"{module}.weight"))

    def _state_name(self, name: str) -> str:
        return f"{name}.quant_state.bitsandbytes__{self.kind}"

    def _stored_absmax(
        self, module: str, tensor: Callable[[str], torch.Tensor], state: QuantState
    ) -> torch.Tensor | NestedAbsmax:
        name, count = f"{module}.weight", state.num_blocks
        absmax = tensor(f"{name}.absmax")
        if state.nested is None:
            _check_moved_scales(module, absmax, state)
            return _vector(module, "absmax", absmax, torch.float32, count)
        block_size, offset = state.nested
        parts = {
            "nested_absmax": -(-count // block_size),
            "nested_quant_map": 256,
        }
        nested_absmax, table = (
            _vector(module, part, tensor(f"{name}.{part}"), torch.float32, size)
            for part, size in parts.items()
        )
        codes = _vector(module, "absmax", absmax, torch.uint8, count)
        return NestedAbsmax(codes, nested_absmax, table, offset, block_size)


@dataclass(frozen=True, slots=True)
class Int8RowsFormat:
    """How an 8-bit bitsandbytes checkpoint stores its quantized layers (`WeightFormat`).

    skipped: the modules that are left alone.
    """

    skipped: tuple[str, ...] = _HEAD_ONLY

    limits: ClassVar[str] = "symmetric 8-bit weights with one scale per output channel"
    suffixes: ClassVar[tuple[str, ...]] = ("weight", "SCB", "weight_format")
    marker: ClassVar[str] = "SCB"
    config_file: ClassVar[str | None] = None

    def label(self, method: str) -> str:  # noqa: ARG002 - as all schemes'
        """The scheme's name: "int8", after LLM.int8, whatever `method` chose the codes."""
        return "int8"

    def config(self, method: str) -> dict[str, Any]:
        """`quantization_config`, with the keys that transformers and vLLM read."""
        return _config(method, self.skipped) | {"load_in_8bit": True}

    def pack(self, module: str, weight: StoredWeight) -> dict[str, torch.Tensor]:
        """The tensors of one layer, named `module.weight`, `module.SCB`, `module.weight_format`."""
        assert isinstance(weight, QuantizedWeight), "the format holds uniform groups"
        assert weight.spec == _INT8_ROWS, "8 bits, symmetric, one scale per row"
        scales = weight.scales.float().squeeze(1)
        scb = scales * _LARGEST_CODE
        assert torch.equal(scb / _LARGEST_CODE, scales), "the scales survive the factor 127"
        return {
            f"{module}.weight": (weight.codes.to(torch.int16) - 128).to(torch.int8),
            f"{module}.SCB": scb,
            f"{module}.weight_format": torch.tensor(0, dtype=torch.uint8),
        }

    def unpack(self, module: str, tensor: Callable[[str], torch.Tensor]) -> QuantizedWeight:
        """Read one layer, its scales as float32. Raises CheckpointError."""
        values = tensor(f"{module}.weight")
        if values.dtype != torch.int8 or values.dim() != 2:
            raise _contradiction(module, f"codes {_describe(values)}", "an int8 matrix")
        layout = tensor(f"{module}.weight_format")
        if layout.numel() != 1 or layout.item() != 0:
            raise CheckpointError(
                f"layer {module} is stored in the layout of an old GPU, not row by row",
                "Save it again with bitsandbytes 0.45 or newer.",
            )
        scb = _vector(module, "SCB", tensor(f"{module}.SCB"), torch.float32, len(values))
        codes = (values.to(torch.int16) + 128).to(torch.uint8)
        return QuantizedWeight(codes, (scb / _LARGEST_CODE).unsqueeze(1), None, None, _INT8_ROWS)

    def num_weights(self, module: str, shape: Callable[[str], tuple[int, ...]]) -> int:
        """Weights of one layer, from the shape in the header."""
        return math.prod(shape(f"{module}.weight"))


def bitsandbytes_format(config: Mapping[str, Any]) -> CodebookFormat | Int8RowsFormat:
    """The format of a `quantization_config`; CheckpointError if it is unusable."""
    four, eight = config.get("load_in_4bit") is True, config.get("load_in_8bit") is True
    if four == eight:
        raise CheckpointError(
            "quantization_config of a bitsandbytes checkpoint sets "
            f"{'both' if four else 'neither'} of load_in_4bit and load_in_8bit",
            "Restore the config.json that came with the weights.",
        )
    if eight:
        return Int8RowsFormat()
    kind = config.get("bnb_4bit_quant_type", "fp4")
    storage = config.get("bnb_4bit_quant_storage", "uint8")
    if kind not in get_args(CodebookKind) or storage != "uint8":
        raise CheckpointError(
            f"bitsandbytes checkpoints of type {kind} stored as {storage} are not supported",
            f"Use one of type {' or '.join(get_args(CodebookKind))}, stored as uint8.",
        )
    dtype = str(config.get("bnb_4bit_compute_dtype", "float32"))
    return CodebookFormat(kind, config.get("bnb_4bit_use_double_quant") is True, dtype)


def _config(method: str, skipped: tuple[str, ...]) -> dict[str, Any]:
    """What transformers' BitsAndBytesConfig holds by default, and who made the file."""
    return {
        "quant_method": "bitsandbytes",
        "load_in_4bit": False,
        "load_in_8bit": False,
        "bnb_4bit_quant_type": "fp4",
        "bnb_4bit_use_double_quant": False,
        "bnb_4bit_compute_dtype": "float32",
        "bnb_4bit_quant_storage": "uint8",
        "llm_int8_threshold": 6.0,
        "llm_int8_skip_modules": list(skipped),
        "llm_int8_enable_fp32_cpu_offload": False,
        "llm_int8_has_fp16_weight": False,
        "meta": {"quantizer": ["llmopt"], "method": method},
    }


def _pack_nibbles(codes: torch.Tensor) -> torch.Tensor:
    """Codes [O, K] as bytes [ceil(O * K / 2), 1]."""
    flat = codes.flatten()
    if len(flat) % 2:
        flat = torch.cat([flat, flat.new_zeros(1)])
    return ((flat[0::2] << 4) | flat[1::2]).unsqueeze(1)


def _unpack_nibbles(packed: torch.Tensor) -> torch.Tensor:
    """Invert `_pack_nibbles`: codes [2 * bytes], a padding one included."""
    flat = packed.flatten()
    return torch.stack([flat >> 4, flat & 15], dim=1).flatten()


def _check_moved_scales(module: str, absmax: torch.Tensor, state: QuantState) -> None:
    """Refuse scales as bitsandbytes leaves them behind after a forward pass on a CPU."""
    moved = (state.shape[1] // state.block_size, state.shape[0])
    if absmax.dtype == torch.bfloat16 and tuple(absmax.shape) == moved:
        raise CheckpointError(
            f"layer {module} has the block scales {_describe(absmax)} where float32 "
            f"[{state.num_blocks}] was expected: bitsandbytes saved this file after a forward pass "
            "on a CPU, which rearranges and rounds them",
            "Quantize the original model again and save it before any forward pass.",
        )


def _vector(
    module: str, part: str, found: torch.Tensor, dtype: torch.dtype, size: int
) -> torch.Tensor:
    if found.dtype != dtype or tuple(found.shape) != (size,):
        expected = f"{str(dtype).removeprefix('torch.')} [{size}]"
        raise _contradiction(module, f"{part} {_describe(found)}", expected)
    return found


def _describe(tensor: torch.Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')} {list(tensor.shape)}"


def _contradiction(module: str, found: str, expected: str) -> CheckpointError:
    return CheckpointError(
        f"layer {module} has {found} where {expected} was expected",
        "The file is damaged or its parts are of different models; fetch or make it again.",
    )
