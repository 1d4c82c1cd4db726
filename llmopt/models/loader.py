"""From a checkpoint directory to a model in memory.

Knows names and shapes of Hugging Face Llama checkpoints; the formats of quantized layers are
`formats.weights`' business. The law: a tensor whose shape does not fit the config is refused before
anything is computed.
"""

from pathlib import Path

import torch

from llmopt.errors import CheckpointError, UsageError
from llmopt.formats.checkpoint import CheckpointReader
from llmopt.formats.weights import quantized_weights
from llmopt.layers.linear import DenseLinear, Linear, Weight, make_linear
from llmopt.layers.norm import RMSNorm
from llmopt.layers.rotary import inverse_frequencies
from llmopt.models.config import ModelConfig
from llmopt.models.llama import Attention, DecoderBlock, GatedMLP, LlamaModel
from llmopt_kernels.rotary import RotaryTables, rotary_tables

DTYPES = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}


def load_model(path: str | Path, *, dtype: str = "auto", device: str = "cpu") -> LlamaModel:
    """Load a model directory.

    dtype: of the activations and of unquantized weights; "auto" is the checkpoint's, except that
    float16, which CPUs compute slowly, becomes bfloat16 there. Raises CheckpointError, ModelError
    or UsageError.
    """
    return ModelLoader(CheckpointReader(path), dtype=dtype, device=device).model()


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

    def __init__(
        self, reader: CheckpointReader, *, dtype: str = "auto", device: str = "cpu"
    ) -> None:
        self.config = ModelConfig.from_hf(reader.config)
        self.device = resolve_device(device)
        self.dtype = resolve_dtype(dtype, self.config, self.device)
        self._reader = reader
        self._quantized = quantized_weights(reader)

    def model(self) -> LlamaModel:
        """The whole model."""
        config = self.config
        vocabulary = (config.vocab_size, config.hidden_size)
        embedding = self._dense("model.embed_tokens.weight", vocabulary)
        tied = config.tie_word_embeddings
        head = embedding if tied else self._dense("lm_head.weight", vocabulary)
        inv_freq = inverse_frequencies(config.head_dim, config.rope_theta, config.rope_scaling)
        return LlamaModel(
            config,
            embedding,
            [self.block(index) for index in range(config.num_layers)],
            self._norm("model.norm"),
            DenseLinear(head, None),
            inv_freq.to(self.device),
        )

    def embed(self, input_ids: torch.Tensor) -> torch.Tensor:
        """The embeddings of input_ids [T] -> [T, C]; only these rows are converted to the dtype."""
        name, config = "model.embed_tokens.weight", self.config
        rows = self._read(name, (config.vocab_size, config.hidden_size))[input_ids.cpu()]
        return rows.to(self.device, self.dtype)

    def rotary(self, positions: torch.Tensor) -> RotaryTables:
        """The rotary tables of a batch. positions: [T]."""
        config = self.config
        inv_freq = inverse_frequencies(config.head_dim, config.rope_theta, config.rope_scaling)
        return rotary_tables(positions.to(self.device), inv_freq.to(self.device), self.dtype)

    def block(self, index: int) -> DecoderBlock:
        """One decoder block."""
        config, prefix = self.config, f"model.layers.{index}"
        hidden, inner = config.hidden_size, config.intermediate_size
        q_size = config.num_heads * config.head_dim
        kv_size = config.num_kv_heads * config.head_dim
        attention = f"{prefix}.self_attn"
        qkv = {"q_proj": q_size, "k_proj": kv_size, "v_proj": kv_size}
        return DecoderBlock(
            self._norm(f"{prefix}.input_layernorm"),
            Attention(
                config,
                self._linear(attention, qkv, hidden, config.attention_bias),
                self._linear(attention, {"o_proj": hidden}, q_size, config.attention_bias),
            ),
            self._norm(f"{prefix}.post_attention_layernorm"),
            GatedMLP(
                self._linear(
                    f"{prefix}.mlp", {"gate_proj": inner, "up_proj": inner}, hidden, config.mlp_bias
                ),
                self._linear(f"{prefix}.mlp", {"down_proj": hidden}, inner, config.mlp_bias),
            ),
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
        if self._quantized is None or prefix not in self._quantized:
            return self._read(f"{prefix}.weight", shape)
        weight = self._quantized.weight(prefix)
        _check_shape(prefix, weight.shape, shape)
        return weight

    def _norm(self, prefix: str) -> RMSNorm:
        weight = self._dense(f"{prefix}.weight", (self.config.hidden_size,))
        return RMSNorm(weight, self.config.rms_norm_eps)

    def _dense(self, name: str, shape: tuple[int, ...]) -> torch.Tensor:
        return self._read(name, shape).to(self.device, self.dtype)

    def _read(self, name: str, shape: tuple[int, ...]) -> torch.Tensor:
        tensor = self._reader.tensor(name)
        _check_shape(name, tuple(tensor.shape), shape)
        return tensor


def _check_shape(name: str, found: tuple[int, ...], expected: tuple[int, ...]) -> None:
    if found != expected:
        raise CheckpointError(
            f"{name} has shape {list(found)} where config.json implies {list(expected)}",
            "config.json and the weights are from different models; fetch the model again.",
        )
