"""Llama weights in a GGUF file, seen as a Hugging Face checkpoint.

Knows nothing about running or quantizing models. Read only. The law: whatever comes out equals
what a Hugging Face checkpoint of the same model would hold, so llama.cpp's own names and its order
of the query and key rows never leave this file.

Sources: the GGUF specification of ggml for names and metadata keys; llama.cpp's HF converter for
the order of the rows.
"""

import mmap
import re
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gguf import dequantize

from llmopt.errors import CheckpointError
from llmopt.formats.gguf_header import (
    GgufError,
    GgufHeader,
    GgufValue,
    TensorInfo,
    byte_shape,
    parse_header,
)

_TOP_NAMES = {
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "output": "lm_head",
}
_BLOCK_NAMES = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_BLOCK_PATTERN = re.compile(r"blk\.(\d+)\.(\w+)")
_REMEDY = "Fetch the file again, or use a safetensors checkpoint of the model."


class GgufReader:
    """Lazy access to the tensors and the config of one GGUF file of the llama architecture.

    Raises CheckpointError: the file is missing, truncated, corrupt, of another architecture, or
    uses a feature that plain Llama does not have (RoPE scaling, experts).
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self._data = _map_file(self.path)
        self._header = self._parse()
        self.config = self._build_config()
        self._num_heads = {
            "q_proj": self.config["num_attention_heads"],
            "k_proj": self.config["num_key_value_heads"],
        }
        self._info_of = {self._hf_name(name): info for name, info in self._header.tensors.items()}

    @property
    def metadata(self) -> dict[str, GgufValue]:
        """All key-value pairs of the header, under GGUF's own keys."""
        return self._header.metadata

    def names(self) -> list[str]:
        """Hugging Face names of all tensors, in the order of the file."""
        return list(self._info_of)

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of a tensor, from the header."""
        return self._info(name).shape

    def quantization(self, name: str) -> str:
        """GGUF's name for how a tensor is stored, such as "Q4_1"."""
        return str(self._info(name).quantization.name)

    def tensor(self, name: str) -> torch.Tensor:
        """One tensor, dequantized to float32; rows of q and k in Hugging Face's order."""
        info = self._info(name)
        weights = torch.from_numpy(self._dequantize(info)).reshape(info.shape)
        num_heads = self._num_heads.get(name.split(".")[-2])
        if num_heads is None:
            return weights
        if info.shape[0] % (2 * num_heads):
            raise self._refusal(f"{info.name} has {info.shape[0]} rows for {num_heads} heads")
        return unpermute_rows(weights, num_heads)

    def _info(self, name: str) -> TensorInfo:
        if name not in self._info_of:
            raise self._refusal(f"it has no tensor {name}")
        return self._info_of[name]

    def _parse(self) -> GgufHeader:
        try:
            return parse_header(memoryview(self._data))
        except GgufError as error:
            raise self._refusal(str(error)) from error

    def _dequantize(self, info: TensorInfo) -> np.ndarray[Any, np.dtype[np.float32]]:
        raw = np.frombuffer(self._data, np.uint8, info.num_bytes, info.offset)
        try:
            values = dequantize(raw.reshape(byte_shape(info)), info.quantization)
        except NotImplementedError as error:
            raise self._refusal(
                f"tensor {info.name} has the type {info.quantization.name}, which cannot be read"
            ) from error
        return np.array(values, dtype=np.float32)

    def _hf_name(self, name: str) -> str:
        stem, _, kind = name.rpartition(".")
        if stem in _TOP_NAMES:
            return f"{_TOP_NAMES[stem]}.{kind}"
        match = _BLOCK_PATTERN.fullmatch(stem)
        if match is None or match[2] not in _BLOCK_NAMES:
            raise self._refusal(f"tensor {name} is not part of a plain Llama model")
        return f"model.layers.{match[1]}.{_BLOCK_NAMES[match[2]]}.{kind}"

    def _build_config(self) -> dict[str, Any]:
        """The config.json of the same model."""
        architecture = self.metadata.get("general.architecture")
        if architecture != "llama":
            raise self._refusal(f"its architecture is {architecture!r}; only 'llama' is read")
        if self.metadata.get("llama.rope.scaling.type", "none") != "none":
            raise self._refusal("it uses RoPE scaling, which is not read from GGUF")
        if "token_embd.weight" not in self._header.tensors:
            raise self._refusal("it has no token embedding")
        return self._llama_config()

    def _llama_config(self) -> dict[str, Any]:
        num_heads = self._integer("llama.attention.head_count")
        hidden_size = self._integer("llama.embedding_length")
        config: dict[str, Any] = {
            "architectures": ["LlamaForCausalLM"],
            "model_type": "llama",
            "vocab_size": self._header.tensors["token_embd.weight"].shape[0],
            "hidden_size": hidden_size,
            "intermediate_size": self._integer("llama.feed_forward_length"),
            "num_hidden_layers": self._integer("llama.block_count"),
            "num_attention_heads": num_heads,
            "num_key_value_heads": self._integer("llama.attention.head_count_kv", num_heads),
            "head_dim": self._integer("llama.attention.key_length", hidden_size // num_heads),
            "hidden_act": "silu",
            "max_position_embeddings": self._integer("llama.context_length"),
            "rms_norm_eps": self._real("llama.attention.layer_norm_rms_epsilon"),
            "rope_theta": self._real("llama.rope.freq_base", 10000.0),
            "tie_word_embeddings": "output.weight" not in self._header.tensors,
            "attention_bias": "blk.0.attn_q.bias" in self._header.tensors,
            "mlp_bias": "blk.0.ffn_gate.bias" in self._header.tensors,
        }
        for role, key in (("bos", "bos"), ("eos", "eos"), ("pad", "padding")):
            if f"tokenizer.ggml.{key}_token_id" in self.metadata:
                config[f"{role}_token_id"] = self._integer(
                    f"tokenizer.ggml.{key}_token_id", minimum=0
                )
        return config

    def _integer(self, key: str, default: int | None = None, minimum: int = 1) -> int:
        value = self.metadata.get(key, default)
        if not isinstance(value, int) or value < minimum:
            raise self._refusal(f"its metadata has {value!r} for {key}, not a count")
        return value

    def _real(self, key: str, default: float | None = None) -> float:
        """A float32 of the header, as the shortest decimal that stands for it: 1e-05."""
        value = self.metadata.get(key, default)
        if not isinstance(value, float):
            raise self._refusal(f"its metadata has {value!r} for {key}, not a number")
        return float(str(np.float32(value)))

    def _refusal(self, reason: str) -> CheckpointError:
        size = len(self._data)
        return CheckpointError(f"{self.path} ({size:,} bytes) cannot be read: {reason}", _REMEDY)


def unpermute_rows(weights: torch.Tensor, num_heads: int) -> torch.Tensor:
    """Undo llama.cpp's order of the rows of a query or key projection.

    Within each head Hugging Face keeps the first halves of all rotary pairs, then the second
    halves; llama.cpp interleaves them as pairs. weights: [num_heads * D, ...] -> the same shape.
    """
    half = weights.shape[0] // num_heads // 2
    pairs = weights.reshape(num_heads, half, 2, *weights.shape[1:])
    return pairs.transpose(1, 2).reshape(weights.shape)


def _map_file(path: Path) -> mmap.mmap:
    try:
        with path.open("rb") as file:
            return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except (OSError, ValueError) as error:  # ValueError: an empty file cannot be mapped
        raise CheckpointError(f"{path} cannot be read ({error})", _REMEDY) from error
