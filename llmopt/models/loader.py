"""From a checkpoint directory or a GGUF file to a model in memory.

Knows the parts of a model and their shapes; where tensors come from is `weight_source`'s business,
and the formats of quantized layers are `formats.weights`'. The law: parts are read one by one, so
nothing that is not asked for is ever in memory.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import get_args

import torch

from llmopt.errors import UsageError
from llmopt.formats.checkpoint import CheckpointReader
from llmopt.formats.gguf import GgufCheckpoint
from llmopt.formats.weights import Checkpoint
from llmopt.layers.activation import activations
from llmopt.layers.linear import DenseLinear, Linear, Weight, make_linear
from llmopt.layers.native_linear import WeightActivations
from llmopt.layers.norm import HeadNorm, LayerNorm, RMSNorm, unchanged
from llmopt.layers.rotary import Frequencies, inverse_frequencies
from llmopt.models.config import ModelConfig
from llmopt.models.decoder import (
    Attention,
    BlockNorm,
    Decoder,
    DecoderBlock,
    Norm,
    Rotary,
    scale_embeddings,
)
from llmopt.models.mlp import MLP, MixtureOfExperts
from llmopt.models.rope import Rope
from llmopt.models.weight_source import CheckpointWeights, WeightSource
from llmopt_kernels.rotary import rotary_tables

DTYPES = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}


def load_model(
    path: str | Path,
    *,
    dtype: str = "auto",
    device: str = "cpu",
    activations: WeightActivations = "auto",
) -> Decoder:
    """Load a model directory or a GGUF file.

    dtype: of the activations and of unquantized weights; "auto" is the checkpoint's, except that
    float16, which CPUs compute slowly, becomes bfloat16 there. activations: as in `make_linear`.
    Raises CheckpointError, ModelError, or UsageError (see `resolve_activations` too).
    """
    reader = open_checkpoint(path)
    return ModelLoader(reader, dtype=dtype, device=device, activations=activations).model()


def open_checkpoint(path: str | Path) -> Checkpoint:
    """The reader of a model directory or of a GGUF file. Raises CheckpointError."""
    return GgufCheckpoint(path) if Path(path).suffix == ".gguf" else CheckpointReader(path)


def resolve_device(device: str) -> torch.device:
    """The torch device of a name; UsageError if there is none here.

    A GPU that is named by its number becomes the current one: Triton launches on that.
    """
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
        if target.index is not None:
            torch.cuda.set_device(target)
    return target


def resolve_dtype(dtype: str, config: ModelConfig, device: torch.device) -> torch.dtype:
    """The activation dtype of a name; UsageError for an unknown one."""
    name = config.dtype if dtype == "auto" else dtype
    if name not in DTYPES:
        raise UsageError(f"the dtype {name} is not supported", f"Use auto or {', '.join(DTYPES)}.")
    if dtype == "auto" and name == "float16" and device.type == "cpu":
        return torch.bfloat16
    return DTYPES[name]


def resolve_activations(
    activations: WeightActivations, dtype: torch.dtype, device: torch.device
) -> WeightActivations:
    """The choice, as `make_linear` takes it. UsageError for an unknown one, and for a rounding that
    no kernel does with this dtype on this device; "auto" and "bf16" ask for none there.
    """
    if activations not in (choices := get_args(WeightActivations)):
        raise UsageError(
            f"activations of {activations!r} are not supported", f"Use {' or '.join(choices)}."
        )
    is_rounded = activations in ("int8", "int16")
    if is_rounded and (device.type != "cpu" or dtype != torch.bfloat16):
        name = str(dtype).removeprefix("torch.")
        raise UsageError(
            f"activations of {activations} were asked for, and {name} on {device.type} has none",
            "Only bfloat16 activations on a CPU are rounded: use bfloat16, or activations of auto.",
        )
    return activations


class ModelLoader:
    """The parts of a model, each read when it is asked for.

    Whoever needs one block at a time never holds the model. source: a checkpoint, or what stands in
    for one. The other arguments as in `load_model`; raises what it raises.
    """

    def __init__(
        self,
        source: Checkpoint | WeightSource,
        *,
        dtype: str = "auto",
        device: str = "cpu",
        activations: WeightActivations = "auto",
    ) -> None:
        if isinstance(source, CheckpointReader | GgufCheckpoint):
            source = CheckpointWeights(source)
        self.config = ModelConfig.from_hf(source.config)
        self.device = resolve_device(device)
        self.dtype = resolve_dtype(dtype, self.config, self.device)
        self.activations = resolve_activations(activations, self.dtype, self.device)
        self._source = source
        self._frequencies = [self._rope(rope) for rope in self.config.ropes]

    def model(self) -> Decoder:
        """The whole model."""
        config, names = self.config, self.config.names
        vocabulary = (config.vocab_size, config.hidden_size)
        embedding = self._dense(f"{names.embedding}.weight", vocabulary)
        tied = config.tie_word_embeddings
        return Decoder(
            config,
            embedding,
            [self.block(index) for index in range(config.num_layers)],
            self.final_norm(),
            DenseLinear(embedding, None) if tied else self.lm_head(),
            self._frequencies,
            self._positions(),
        )

    def final_norm(self) -> BlockNorm:
        """The norm behind the last block."""
        return self._norm(self.config.names.final_norm)

    def lm_head(self) -> Linear:
        """The output head of a model that has one of its own, not tied to the embedding."""
        weight = self._source.linear("lm_head", (self.config.vocab_size, self.config.hidden_size))
        return self._make_linear([weight], [None])

    def embed(self, input_ids: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        """The embeddings [T, C] of input_ids at positions, both [T]; only these rows are converted
        to the dtype.
        """
        config = self.config
        shape = (config.vocab_size, config.hidden_size)
        table = self._source.tensor(f"{config.names.embedding}.weight", shape)
        rows = scale_embeddings(table[input_ids.cpu()].to(self.device, self.dtype), config)
        learned = self._positions()
        return rows if learned is None else rows + learned[positions.to(self.device)]

    def rotary(self, positions: torch.Tensor) -> Rotary:
        """The rotary tables of a batch. positions: [T]."""
        positions = positions.to(self.device)
        return tuple(
            rotary_tables(positions, inv_freq, self.dtype, scale)
            for inv_freq, scale in self._frequencies
        )

    def block(self, index: int) -> DecoderBlock:
        """One decoder block."""
        names, prefix = self.config.names, self.config.names.block(index)
        return DecoderBlock(
            self._norm(prefix + names.input_norm),
            self._attention(index, prefix),
            self._branch_norm(prefix + names.attention_branch_norm),
            self._norm(prefix + names.mlp_norm),
            self._mlp(prefix),
            self._branch_norm(prefix + names.mlp_branch_norm),
        )

    def _attention(self, index: int, prefix: str) -> Attention:
        config, names = self.config, self.config.names
        hidden, q_size = config.hidden_size, config.num_heads * config.head_dim
        kv_size = config.num_kv_heads * config.head_dim
        qkv = split_rows(names.qkv, (q_size, kv_size, kv_size))
        return Attention(
            config,
            index,
            self._linear(prefix, qkv, hidden, config.qkv_bias),
            self._head_norm(prefix),
            self._linear(prefix, {names.output: hidden}, q_size, config.output_bias),
        )

    def _mlp(self, prefix: str) -> MLP | MixtureOfExperts:
        config = self.config
        if config.experts is None:
            return self._expert(prefix, 0)
        router = self._linear(
            prefix, {config.names.router: config.num_experts}, config.hidden_size, has_bias=False
        )
        experts = [self._expert(prefix, expert) for expert in range(config.num_experts)]
        return MixtureOfExperts(router, experts, config.experts)

    def _expert(self, prefix: str, expert: int) -> MLP:
        config, names = self.config, self.config.names
        hidden, inner = config.hidden_size, config.intermediate_size
        first = [name.format(expert=expert) for name in names.gate_up]
        rows = split_rows(first, (inner, inner) if config.gated else (inner,))
        down = {names.down.format(expert=expert): hidden}
        return MLP(
            self._linear(prefix, rows, hidden, config.mlp_bias),
            self._linear(prefix, down, inner, config.mlp_bias),
            activations(gated=config.gated)[config.activation],
        )

    def _linear(
        self, prefix: str, rows: Mapping[str, int], in_features: int, has_bias: bool
    ) -> Linear:
        weights = [self._source.linear(prefix + name, (n, in_features)) for name, n in rows.items()]
        biases = [
            self._source.tensor(f"{prefix}{name}.bias", (n,)) if has_bias else None
            for name, n in rows.items()
        ]
        return self._make_linear(weights, biases)

    def _make_linear(
        self, weights: Sequence[Weight], biases: Sequence[torch.Tensor | None]
    ) -> Linear:
        return make_linear(
            weights,
            biases,
            dtype=self.dtype,
            device=self.device,
            activations=self.activations,
        )

    def _norm(self, name: str) -> BlockNorm:
        if not self.config.layer_norm:
            return self._rms_norm(name, self.config.hidden_size)
        shape = (self.config.hidden_size,)
        weight, bias = (self._dense(f"{name}.{kind}", shape) for kind in ("weight", "bias"))
        return LayerNorm(weight, bias, self.config.rms_norm_eps)

    def _rms_norm(self, name: str, size: int) -> RMSNorm:
        weight = self._dense(f"{name}.weight", (size,))
        return RMSNorm(weight, self.config.rms_norm_eps, self.config.norm_offset)

    def _branch_norm(self, name: str) -> Norm:
        return self._norm(name) if self.config.branch_norms else unchanged

    def _head_norm(self, prefix: str) -> Norm:
        if not self.config.head_norms:
            return unchanged
        names, head_dim = self.config.names, self.config.head_dim
        query, key = (
            self._rms_norm(prefix + name, head_dim) for name in (names.query_norm, names.key_norm)
        )
        return HeadNorm(query, key, self.config.num_heads)

    def _positions(self) -> torch.Tensor | None:
        """The learned positions [P, C], that of position 0 first; None where there are none."""
        config, first = self.config, self.config.first_position
        if first is None:
            return None
        shape = (first + config.max_model_len, config.hidden_size)
        return self._dense(f"{config.names.positions}.weight", shape)[first:]

    def _rope(self, rope: Rope) -> Frequencies:
        num_channels = rope.num_channels(self.config.head_dim)
        inv_freq, scale = inverse_frequencies(num_channels, rope.theta, rope.scaling)
        return inv_freq.to(self.device), scale

    def _dense(self, name: str, shape: tuple[int, ...]) -> torch.Tensor:
        return self._source.tensor(name, shape).to(self.device, self.dtype)


def split_rows(names: Sequence[str], sizes: Sequence[int]) -> dict[str, int]:
    """The rows of each of the matrices that are one layer; all of them where one name holds all."""
    return dict(zip(names, sizes if len(names) > 1 else (sum(sizes),), strict=True))
