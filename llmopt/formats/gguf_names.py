"""Which tensor of a Hugging Face checkpoint is which tensor of a GGUF file, and how their contents
differ.

Knows nothing of files or metadata. The law: `to_hf` undoes `to_ggml`, for names and for contents.

Sources: the GGUF specification of ggml; llama.cpp's loaders for names and for what each
architecture takes as given; its HF converter for two differences of content: the order of the query
and key rows of the llama architecture, and the norms of Gemma, which hold 1 + w.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeVar

import torch

from llmopt.errors import ModelError
from llmopt.formats.gguf_blocks import GgufWeight

Content = TypeVar("Content", torch.Tensor, GgufWeight)

ROPE_FACTORS = "rope_freqs.weight"  # by what llama.cpp divides each rotary frequency
_TOP = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
}
_SHARED = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
_HEAD_NORMS = {"self_attn.q_norm": "attn_q_norm", "self_attn.k_norm": "attn_k_norm"}
_PRE_NORM = _SHARED | {"post_attention_layernorm": "ffn_norm"}
_SANDWICH_NORM = _SHARED | {
    "post_attention_layernorm": "post_attention_norm",
    "pre_feedforward_layernorm": "ffn_norm",
    "post_feedforward_layernorm": "post_ffw_norm",
}
_FUSED = {
    "input_layernorm": "attn_norm",
    "self_attn.qkv_proj": "attn_qkv",
    "self_attn.o_proj": "attn_output",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
_HF_BLOCK = re.compile(r"model\.layers\.(\d+)\.(.+)")
_GGML_BLOCK = re.compile(r"blk\.(\d+)\.(.+)")


@dataclass(frozen=True, slots=True)
class GgufArchitecture:
    """One of llama.cpp's architectures and the Hugging Face class of the same model.

    aliases: other classes that compute the same, if they use no more than that one can
    has_head: the output head can be another matrix than the embedding
    activation_key, activation: in config.json, and its only value
    head_dim: where config.json may leave it out; None: implied by the other sizes
    partial_rotary: some channels of a head may stay unrotated
    window_period: each so-manieth layer sees everything, the others a window; None: no windows
    window: of a file that does not name it; 0: none
    says_pattern: a file can have another order of windows than that of window_period
    local_theta: layers with a window have a rotary base of their own
    soft_caps: keys that config.json and metadata share, with the value where a file has none
    odd_depth: of layers: models of this depth divide scores by the root of hidden size per head
    """

    name: str  # such as "llama": general.architecture, and the prefix of its metadata keys
    hf_name: str  # such as "LlamaForCausalLM"
    model_type: str  # of config.json
    blocks: Mapping[str, str]  # module of a decoder block -> ggml's name for it
    biased: frozenset[str]  # ggml's names of the modules that may have a bias
    interleaved_rotary: bool = False  # rows of q and k in pairs
    shifted_norms: bool = False  # norms hold 1 + w
    aliases: tuple[str, ...] = ()
    has_head: bool = True
    activation_key: str = "hidden_act"
    activation: str = "silu"
    head_dim: int | None = None
    partial_rotary: bool = False
    window_period: int | None = None
    window: int = 0
    says_pattern: bool = False
    local_theta: bool = False
    soft_caps: tuple[tuple[str, float], ...] = ()
    odd_depth: int | None = None

    def to_ggml(self, name: str) -> str | None:
        """ggml's name of a tensor, or None if the architecture has no such tensor."""
        module, _, kind = name.rpartition(".")
        if module in _TOP:
            return f"{_TOP[module]}.{kind}" if self._has_top(module, kind) else None
        match = _HF_BLOCK.fullmatch(module)
        stem = self.blocks.get(match[2]) if match else None
        if match is None or stem is None or not self._has(stem, kind):
            return None
        return f"blk.{match[1]}.{stem}.{kind}"

    def to_hf(self, name: str) -> str | None:
        """Hugging Face's name of a tensor, or None if the architecture has no such tensor."""
        stem, _, kind = name.rpartition(".")
        for hf_stem, ggml_stem in _TOP.items():
            if stem == ggml_stem:
                return f"{hf_stem}.{kind}" if self._has_top(hf_stem, kind) else None
        match = _GGML_BLOCK.fullmatch(stem)
        if match is None or not self._has(match[2], kind):
            return None
        for hf_stem, ggml_stem in self.blocks.items():
            if match[2] == ggml_stem:
                return f"model.layers.{match[1]}.{hf_stem}.{kind}"
        return None

    def _has_top(self, module: str, kind: str) -> bool:
        return kind == "weight" and (self.has_head or module != "lm_head")

    def _has(self, stem: str, kind: str) -> bool:
        return kind == "weight" or (kind == "bias" and stem in self.biased)

    def heads(self, name: str, num_heads: int, num_kv_heads: int) -> int | None:
        """How many heads the rows of a tensor (its HF name) are reordered in; None if they stay."""
        if not self.interleaved_rotary:
            return None
        return {"q_proj": num_heads, "k_proj": num_kv_heads}.get(name.split(".")[-2])

    def shift(self, name: str) -> float:
        """What is added to a tensor (its HF name) in GGUF."""
        return 1.0 if self.shifted_norms and name.endswith("norm.weight") else 0.0


_ALL = (
    GgufArchitecture(
        "llama",
        "LlamaForCausalLM",
        "llama",
        _PRE_NORM,
        biased=frozenset(
            ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down")
        ),
        interleaved_rotary=True,
        aliases=("MistralForCausalLM",),
    ),
    GgufArchitecture(
        "qwen2",
        "Qwen2ForCausalLM",
        "qwen2",
        _PRE_NORM,
        biased=frozenset(("attn_q", "attn_k", "attn_v")),
    ),
    GgufArchitecture(
        "qwen3",
        "Qwen3ForCausalLM",
        "qwen3",
        _PRE_NORM | _HEAD_NORMS,
        biased=frozenset(),
        head_dim=128,
    ),
    GgufArchitecture(
        "phi3", "Phi3ForCausalLM", "phi3", _FUSED, biased=frozenset(), partial_rotary=True
    ),
    GgufArchitecture(
        "gemma2",
        "Gemma2ForCausalLM",
        "gemma2",
        _SANDWICH_NORM,
        biased=frozenset(),
        shifted_norms=True,
        has_head=False,
        activation_key="hidden_activation",
        activation="gelu_pytorch_tanh",
        head_dim=256,
        window_period=2,
        window=4096,
        soft_caps=(("attn_logit_softcapping", 50.0), ("final_logit_softcapping", 30.0)),
        odd_depth=46,
    ),
    GgufArchitecture(
        "gemma3",
        "Gemma3ForCausalLM",
        "gemma3_text",
        _SANDWICH_NORM | _HEAD_NORMS,
        biased=frozenset(),
        shifted_norms=True,
        activation_key="hidden_activation",
        activation="gelu_pytorch_tanh",
        head_dim=256,
        window_period=6,
        says_pattern=True,
        local_theta=True,
        soft_caps=(("final_logit_softcapping", 0.0),),
        odd_depth=62,
    ),
)
ARCHITECTURES = {architecture.name: architecture for architecture in _ALL}
_OF_HF_NAME = {name: each for each in _ALL for name in (each.hf_name, *each.aliases)}


def architecture_of(hf_name: str) -> GgufArchitecture:
    """The architecture of a class in config.json. Raises ModelError for one that is not known."""
    if hf_name not in _OF_HF_NAME:
        raise ModelError(
            f"the architecture {hf_name} cannot be written as GGUF",
            f"Supported: {', '.join(_OF_HF_NAME)}.",
        )
    return _OF_HF_NAME[hf_name]


def permute_rows(rows: Content, num_heads: int) -> Content:
    """llama.cpp's order of the rows of a query or key projection.

    Within each head Hugging Face keeps the first halves of all rotary pairs, then the second
    halves; llama.cpp interleaves them as pairs. rows: [num_heads * D, ...] -> the same shape;
    blocks go with their rows.
    """
    return _reorder(rows, num_heads, (2, -1))


def unpermute_rows(rows: Content, num_heads: int) -> Content:
    """Undo `permute_rows`."""
    return _reorder(rows, num_heads, (-1, 2))


def _reorder(rows: Content, num_heads: int, split: tuple[int, int]) -> Content:
    """Split the rows of each head in two dimensions and swap these."""
    if isinstance(rows, GgufWeight):
        return GgufWeight(_reorder(rows.blocks, num_heads, split), rows.type, rows.shape)
    swapped = rows.reshape(num_heads, *split, *rows.shape[1:]).transpose(1, 2)
    return swapped.reshape(rows.shape)
