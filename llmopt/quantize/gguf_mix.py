"""Which ggml type each tensor of a model gets under a mix such as q4_k_m.

Knows nothing of weights or files. The law: for dense decoder models the answer equals that of
llama.cpp's quantizer, tensor by tensor, fallbacks for odd shapes included. Where llama.cpp refuses
(rows that even the fallback's blocks do not divide), the tensor stays in f16.

Source: the rules of llama.cpp (src/llama-quant.cpp, read in 2026): sensitive tensors (attention
values, the end of the MLP, the output) get more bits, most of all in the first and last layers.
"""

from dataclasses import dataclass

from llmopt.errors import QuantizationError
from llmopt.formats.gguf_blocks import GGML_TYPES


@dataclass(frozen=True, slots=True)
class Mix:
    """A named choice of types: the type most tensors get, and `general.file_type` of its files."""

    name: str
    base: str
    file_type: int


MIXES = {
    mix.name: mix
    for mix in (
        Mix("f32", "f32", 0),
        Mix("f16", "f16", 1),
        Mix("bf16", "bf16", 32),
        Mix("q4_0", "q4_0", 2),
        Mix("q4_1", "q4_1", 3),
        Mix("q5_0", "q5_0", 8),
        Mix("q5_1", "q5_1", 9),
        Mix("q8_0", "q8_0", 7),
        Mix("q2_k", "q2_k", 10),
        Mix("q3_k_m", "q3_k", 12),
        Mix("q4_k_s", "q4_k", 14),
        Mix("q4_k_m", "q4_k", 15),
        Mix("q5_k_s", "q5_k", 16),
        Mix("q5_k_m", "q5_k", 17),
        Mix("q6_k", "q6_k", 18),
        Mix("iq4_nl", "iq4_nl", 25),
        Mix("iq4_xs", "iq4_xs", 30),
    )
}

_UNQUANTIZED = ("_norm.weight", "ffn_gate_inp.weight", "position_embd", "token_types", "ssm_conv1d")
_VALUE_TENSORS = ("attn_v.weight", "attn_qkv.weight", "attn_kv_b.weight")
_FALLBACKS = {
    "q2_k": "q4_0",
    "q3_k": "q4_0",
    "q4_k": "q5_0",
    "q5_k": "q5_1",
    "q6_k": "q8_0",
    "iq4_xs": "iq4_nl",
}
_MANY_SHARED_HEADS = 4  # query heads per key/value head


def find_mix(name: str) -> Mix:
    """The mix of a name, in any case; QuantizationError if it is unknown."""
    found = MIXES.get(name.lower())
    if found is None:
        raise QuantizationError(
            f"{name!r} is not a GGUF mix that is written here",
            f"Choose one of {', '.join(MIXES)}.",
        )
    return found


@dataclass(frozen=True, slots=True)
class _Place:
    """Where in the model a tensor is."""

    layer: int
    num_layers: int

    def is_in_first(self, part: int) -> bool:
        """Whether it is in the first 1/part of the layers."""
        return self.layer < self.num_layers // part

    def deserves_more_bits(self) -> bool:
        """The first and the last eighth of the layers, and every third one in between."""
        eighth = self.num_layers // 8
        at_an_end = self.layer < eighth or self.layer >= 7 * self.num_layers // 8
        return at_an_end or (self.layer - eighth) % 3 == 2


def tensor_type(
    mix: str,
    tensor_name: str,
    shape: tuple[int, ...],
    *,
    layer: int | None,
    num_layers: int,
    tied: bool,
    num_heads: int,
    num_kv_heads: int,
    arch: str,
    has_importance: bool,
) -> str:
    """The name of the ggml type for one tensor.

    tensor_name: ggml's name, such as "blk.0.attn_v.weight"
    shape: outermost dimension first, (O, K) for a matrix
    layer: the number of its block; None for tensors outside of the blocks
    tied: whether the model has no output.weight of its own, so that token_embd.weight is both
    arch: ggml's name of the architecture, such as "llama" or "qwen2"
    has_importance: whether the model is quantized with an importance matrix
    Raises QuantizationError for an unknown mix.
    """
    chosen = find_mix(mix)
    if not _is_quantized(tensor_name, shape):
        return "f32"
    if GGML_TYPES[chosen.base].layout is None:
        return chosen.base
    if tensor_name == "output.weight" or (tied and tensor_name == "token_embd.weight"):
        return _fitting(_output_type(chosen.base, shape[-1]), shape[-1])
    wished = chosen.base
    if layer is not None:
        place = _Place(layer, num_layers)
        shared_heads = num_heads // num_kv_heads
        if tensor_name.endswith(_VALUE_TENSORS):
            wished = _value_type(chosen, place, shared_heads)
            if _is_70b(arch, num_layers, shared_heads) and wished in ("q3_k", "q4_k"):
                wished = "q5_k"
        elif "ffn_down" in tensor_name:
            wished = _down_type(chosen, place, has_importance)
        elif tensor_name.endswith("attn_output.weight"):
            wished = {"q2_k": "q3_k", "q3_k_m": "q4_k"}.get(chosen.name, wished)
    return _fitting(wished, shape[-1])


def _is_quantized(tensor_name: str, shape: tuple[int, ...]) -> bool:
    is_weight = len(shape) >= 2 and tensor_name.endswith("weight")
    return is_weight and not any(part in tensor_name for part in _UNQUANTIZED)


def _output_type(base: str, columns: int) -> str:
    if base == "q8_0" or not GGML_TYPES[base].fits(columns):
        return "q8_0"
    return "q6_k"


def _value_type(mix: Mix, place: _Place, shared_heads: int) -> str:
    """Attention values, which are small where many query heads share them."""
    shared = shared_heads >= _MANY_SHARED_HEADS
    if mix.name == "q2_k":
        return "q4_k" if shared else "q3_k"
    if mix.name == "q3_k_m":
        return "q5_k" if place.layer < 2 else "q4_k"
    if mix.name in ("iq4_nl", "iq4_xs") and shared:
        return "q5_k"
    if mix.name in ("q4_k_m", "q5_k_m") and place.deserves_more_bits():
        return "q6_k"
    if mix.name == "q4_k_s" and place.layer < 4:
        return "q5_k"
    return mix.base


def _down_type(mix: Mix, place: _Place, has_importance: bool) -> str:
    if mix.name == "q2_k":
        return "q3_k"
    if mix.name == "q3_k_m":
        return "q5_k" if place.is_in_first(16) else "q4_k"
    if mix.name in ("q4_k_m", "q5_k_m"):
        return "q6_k" if place.deserves_more_bits() else mix.base
    if not place.is_in_first(8):
        return mix.base
    if mix.name == "q4_k_s" or (mix.name in ("iq4_nl", "iq4_xs") and not has_importance):
        return "q5_k"
    if mix.name in ("q4_0", "q5_0") and has_importance:
        return {"q4_0": "q4_1", "q5_0": "q5_1"}[mix.name]
    return mix.base


def _is_70b(arch: str, num_layers: int, shared_heads: int) -> bool:
    """Whether llama.cpp takes the model for one of 70 billion parameters."""
    return num_layers == 80 and (arch == "qwen2" or (arch == "llama" and shared_heads > 1))


def _fitting(wished: str, columns: int) -> str:
    """The wished type, or the one that replaces it where rows are not whole blocks of it."""
    for name in (wished, _FALLBACKS.get(wished, wished)):
        if GGML_TYPES[name].fits(columns):
            return name
    return "f16"
