"""From a checkpoint directory or a GGUF file to a model in memory.

Knows names and shapes of Hugging Face checkpoints; the formats of quantized layers are
`formats.weights`' business. The law: a tensor whose shape does not fit the config is refused before
anything is computed.
"""

from collections.abc import Callable, Mapping
from pathlib import Path

import torch

from llmopt.errors import CheckpointError, UsageError
from llmopt.formats.checkpoint import CheckpointReader
from llmopt.formats.gguf import GgufCheckpoint
from llmopt.formats.quantized import StoredWeight
from llmopt.formats.weights import Checkpoint, quantized_weights
from llmopt.layers.linear import DenseLinear, Linear, Weight, make_linear
from llmopt.layers.norm import HeadNorm, RMSNorm, unchanged
from llmopt.layers.rotary import inverse_frequencies
from llmopt.models.config import Activation, ModelConfig
from llmopt.models.decoder import (
    Attention,
    Decoder,
    DecoderBlock,
    GatedMLP,
    Norm,
    Rotary,
    scale_embeddings,
)
from llmopt_kernels.gated_activation import GatedActivation, gelu_tanh_mul, silu_mul
from llmopt_kernels.rotary import rotary_tables

DTYPES = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}
_ACTIVATIONS: Mapping[Activation, GatedActivation] = {
    "silu": silu_mul,
    "gelu_pytorch_tanh": gelu_tanh_mul,
}


def load_model(path: str | Path, *, dtype: str = "auto", device: str = "cpu") -> Decoder:
    """Load a model directory or a GGUF file.

    dtype: of the activations and of unquantized weights; "auto" is the checkpoint's, except that
    float16, which CPUs compute slowly, becomes bfloat16 there. Raises CheckpointError, ModelError
    or UsageError.
    """
    return ModelLoader(open_checkpoint(path), dtype=dtype, device=device).model()


def open_checkpoint(path: str | Path) -> Checkpoint:
    """The reader of a model directory or of a GGUF file. Raises CheckpointError."""
    return GgufCheckpoint(path) if Path(path).suffix == ".gguf" else CheckpointReader(path)


def resolve_device(device: str) -> torch.device:
    """The torch device of a name; UsageError if there is none here."""
    try:
        target = torch.device(device)
    except RuntimeError as error:
        raise UsageError(f"{device!r} is not a device", "Use cpu, cuda or cuda:N.") from error
    if target.type not in ("cpu", "cuda"):
        raise UsageError(f"the device {device} is not supported", "Use cpu, cuda or cuda:N.")
    if target.type == "cuda":
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if (target.index or 0) >= count:
            raise UsageError(
                f"the device {device} was asked for and {count} CUDA devices are usable here",
                "Use --device cpu, or install a CUDA build of torch on a machine with a GPU.",
            )
    return target


def resolve_dtype(dtype: str, config: ModelConfig, device: torch.device) -> torch.dtype:
    """The activation dtype of a name; UsageError for an unknown one."""
    name = config.dtype if dtype == "auto" else dtype
    if name not in DTYPES:
        raise UsageError(f"the dtype {name} is not supported", f"Use auto or {', '.join(DTYPES)}.")
    if dtype == "auto" and name == "float16" and device.type == "cpu":
        return torch.bfloat16
    return DTYPES[name]


class ModelLoader:
    """The parts of a checkpoint's model, each read when it is asked for.

    Whoever needs one block at a time never holds the model. `dtype` and `device` as in
    `load_model`; raises what it raises.
    """

    def __init__(self, reader: Checkpoint, *, dtype: str = "auto", device: str = "cpu") -> None:
        self.config = ModelConfig.from_hf(reader.config)
        self.device = resolve_device(device)
        self.dtype = resolve_dtype(dtype, self.config, self.device)
        self._reader = reader
        self._quantized = _quantized_weight(reader)
        self._inv_freqs = tuple(
            inverse_frequencies(self.config.head_dim, rope.theta, rope.scaling).to(self.device)
            for rope in self.config.ropes
        )

    def model(self) -> Decoder:
        """The whole model."""
        config = self.config
        vocabulary = (config.vocab_size, config.hidden_size)
        embedding = self._dense("model.embed_tokens.weight", vocabulary)
        tied = config.tie_word_embeddings
        return Decoder(
            config,
            embedding,
            [self.block(index) for index in range(config.num_layers)],
            self.final_norm(),
            DenseLinear(embedding, None) if tied else self.lm_head(),
            self._inv_freqs,
        )

    def final_norm(self) -> RMSNorm:
        """The norm behind the last block."""
        return self._norm("model.norm", self.config.hidden_size)

    def lm_head(self) -> Linear:
        """The output head of a model that has one of its own, not tied to the embedding."""
        weight = self._weight("lm_head", (self.config.vocab_size, self.config.hidden_size))
        return make_linear([weight], [None], dtype=self.dtype, device=self.device)

    def embed(self, input_ids: torch.Tensor) -> torch.Tensor:
        """The embeddings of input_ids [T] -> [T, C]; only these rows are converted to the dtype."""
        name, config = "model.embed_tokens.weight", self.config
        rows = self._read(name, (config.vocab_size, config.hidden_size))[input_ids.cpu()]
        return scale_embeddings(rows.to(self.device, self.dtype), config)

    def rotary(self, positions: torch.Tensor) -> Rotary:
        """The rotary tables of a batch. positions: [T]."""
        positions = positions.to(self.device)
        return tuple(rotary_tables(positions, freq, self.dtype) for freq in self._inv_freqs)

    def block(self, index: int) -> DecoderBlock:
        """One decoder block."""
        config, prefix = self.config, f"model.layers.{index}"
        hidden = config.hidden_size
        return DecoderBlock(
            self._norm(f"{prefix}.input_layernorm", hidden),
            self._attention(index, f"{prefix}.self_attn"),
            self._branch_norm(f"{prefix}.post_attention_layernorm"),
            self._norm(f"{prefix}.{config.mlp_norm_name}", hidden),
            self._mlp(f"{prefix}.mlp"),
            self._branch_norm(f"{prefix}.post_feedforward_layernorm"),
        )

    def _attention(self, index: int, prefix: str) -> Attention:
        config = self.config
        hidden, q_size = config.hidden_size, config.num_heads * config.head_dim
        kv_size = config.num_kv_heads * config.head_dim
        qkv = {"q_proj": q_size, "k_proj": kv_size, "v_proj": kv_size}
        return Attention(
            config,
            index,
            self._linear(prefix, qkv, hidden, config.qkv_bias),
            self._head_norm(prefix),
            self._linear(prefix, {"o_proj": hidden}, q_size, config.output_bias),
        )

    def _mlp(self, prefix: str) -> GatedMLP:
        config = self.config
        hidden, inner = config.hidden_size, config.intermediate_size
        gate_up = {"gate_proj": inner, "up_proj": inner}
        return GatedMLP(
            self._linear(prefix, gate_up, hidden, config.mlp_bias),
            self._linear(prefix, {"down_proj": hidden}, inner, config.mlp_bias),
            _ACTIVATIONS[config.activation],
        )

    def _linear(
        self, parent: str, rows: dict[str, int], in_features: int, has_bias: bool
    ) -> Linear:
        weights = [self._weight(f"{parent}.{name}", (n, in_features)) for name, n in rows.items()]
        biases = [
            self._read(f"{parent}.{name}.bias", (n,)) if has_bias else None
            for name, n in rows.items()
        ]
        return make_linear(weights, biases, dtype=self.dtype, device=self.device)

    def _weight(self, prefix: str, shape: tuple[int, int]) -> Weight:
        weight = self._quantized(prefix)
        if weight is None:
            return self._read(f"{prefix}.weight", shape)
        _check_shape(prefix, weight.shape, shape)
        return weight

    def _norm(self, prefix: str, size: int) -> RMSNorm:
        weight = self._dense(f"{prefix}.weight", (size,))
        return RMSNorm(weight, self.config.rms_norm_eps, self.config.norm_offset)

    def _branch_norm(self, prefix: str) -> Norm:
        has_one = self.config.branch_norms
        return self._norm(prefix, self.config.hidden_size) if has_one else unchanged

    def _head_norm(self, prefix: str) -> Norm:
        if not self.config.head_norms:
            return unchanged
        head_dim, num_heads = self.config.head_dim, self.config.num_heads
        query, key = (self._norm(f"{prefix}.{name}_norm", head_dim) for name in "qk")
        return HeadNorm(query, key, num_heads)

    def _dense(self, name: str, shape: tuple[int, ...]) -> torch.Tensor:
        return self._read(name, shape).to(self.device, self.dtype)

    def _read(self, name: str, shape: tuple[int, ...]) -> torch.Tensor:
        tensor = self._reader.tensor(name)
        _check_shape(name, tuple(tensor.shape), shape)
        return tensor


def _quantized_weight(reader: Checkpoint) -> Callable[[str], StoredWeight | None]:
    """What reads a layer that is stored quantized, and answers None for another one."""
    weights = quantized_weights(reader)
    return lambda module: (
        None if weights is None or module not in weights else weights.weight(module)
    )


def _check_shape(name: str, found: tuple[int, ...], expected: tuple[int, ...]) -> None:
    if found != expected:
        raise CheckpointError(
            f"{name} has shape {list(found)} where config.json implies {list(expected)}",
            "config.json and the weights are from different models; fetch the model again.",
        )
