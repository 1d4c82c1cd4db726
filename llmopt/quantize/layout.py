"""Which tensors of a checkpoint are quantized, and whether a spec fits them.

Knows the modules of decoder blocks; knows nothing of methods.
Law: whatever cannot be written is refused here, before any work is done.
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import IntEnum

from llmopt.errors import CheckpointError, QuantizationError
from llmopt.formats.checkpoint import CheckpointReader
from llmopt.formats.overrides import LM_HEAD
from llmopt.formats.quantized import QuantSpec
from llmopt.formats.weights import quantization_config
from llmopt.models.config import ModelConfig
from llmopt.models.loader import split_rows
from llmopt.models.module_names import ModuleNames
from llmopt.quantize.override import ModuleSpecs

KERNEL_MULTIPLE = 32  # columns and rows come in whole words of packed codes; kernels want it too


class Place(IntEnum):
    """The linear layers of a decoder block, in the order in which it runs them."""

    QKV = 0
    OUTPUT = 1
    GATE_UP = 2
    DOWN = 3


@dataclass(frozen=True, slots=True)
class LinearModules:
    """One linear layer of the runtime, and the checkpoint modules that are stacked in it; of
    experts, the layers of all of them, which share nothing.

    last_rows: how many of its last outputs AWQ and SmoothQuant may divide
    """

    name: str
    parts: tuple[str, ...]
    part_rows: tuple[int, ...]
    last_rows: int = 0
    num_experts: int = 1

    @property
    def undivided_rows(self) -> int:
        """The first rows, whose outputs nothing divides."""
        return min(self.part_rows[0], sum(self.part_rows) - self.last_rows)

    @property
    def families(self) -> list[tuple[str, ...]]:
        """The modules that readers compute as one layer, by expert."""
        size = len(self.parts) // self.num_experts
        return [self.parts[i : i + size] for i in range(0, len(self.parts), size)]


def block_modules(config: ModelConfig, block: int) -> tuple[LinearModules, ...]:
    """Return the linear layers of one decoder block, by `Place`."""
    names, prefix = config.names, config.names.block(block)
    hidden, inner, count = config.hidden_size, config.intermediate_size, config.num_experts
    q_rows, kv_rows = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
    qkv = split_rows(names.qkv, (q_rows, kv_rows, kv_rows))
    gate_up = split_rows(names.gate_up, (inner, inner) if config.gated else (inner,))
    return (
        _modules(f"{prefix}self_attn.qkv", prefix, qkv, kv_rows),
        _modules(f"{prefix}self_attn.output", prefix, {names.output: hidden}),
        _modules(f"{prefix}mlp.gate_up", prefix, gate_up, inner, count),
        _modules(f"{prefix}mlp.down", prefix, {names.down: hidden}, num_experts=count),
    )


def _modules(
    name: str, prefix: str, rows: Mapping[str, int], last_rows: int = 0, num_experts: int = 1
) -> LinearModules:
    parts = [prefix + part.format(expert=e) for e in range(num_experts) for part in rows]
    return LinearModules(
        name, tuple(parts), tuple(rows.values()) * num_experts, last_rows, num_experts
    )


def router_modules(config: ModelConfig) -> list[str]:
    """Return the modules that choose experts, which are never quantized."""
    if config.experts is None:
        return []
    names = config.names
    return [names.block(block) + names.router for block in range(config.num_layers)]


def norm_name(block: int, place: Place, names: ModuleNames) -> str:
    """Return the tensor of the norm before a block's attention (QKV) or MLP (GATE_UP)."""
    name = names.input_norm if place is Place.QKV else names.mlp_norm
    return f"{names.block(block)}{name}.weight"


def model_families(config: ModelConfig) -> list[tuple[str, ...]]:
    """Return the modules of all linear layers of the decoder blocks, those of a layer together."""
    blocks = range(config.num_layers)
    return [
        family
        for block in blocks
        for modules in block_modules(config, block)
        for family in modules.families
    ]


def head_modules(config: ModelConfig) -> LinearModules:
    """Return the output head of a model that has one of its own."""
    return LinearModules(LM_HEAD, (LM_HEAD,), (config.vocab_size,))


def check_source(reader: CheckpointReader) -> None:
    """Raise `QuantizationError` if this checkpoint is quantized already, and `CheckpointError` if
    its config is malformed.
    """
    config = quantization_config(reader.config)
    if config is not None:
        method = config.get("quant_method", "an unknown method")
        raise QuantizationError(
            f"{reader.path} is quantized already ({method})",
            "Quantize the original model instead.",
        )


def tensor_shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Return the shapes that a model's tensors have by its config, but for biases."""
    hidden, names = config.hidden_size, config.names
    shapes: dict[str, tuple[int, ...]] = {
        f"{names.embedding}.weight": (config.vocab_size, hidden),
        f"{names.final_norm}.weight": (hidden,),
    }
    if config.first_position is not None:
        positions = config.first_position + config.max_model_len
        shapes[f"{names.positions}.weight"] = (positions, hidden)
    for router in router_modules(config):
        shapes[f"{router}.weight"] = (config.num_experts, hidden)
    if not config.tie_word_embeddings:
        shapes["lm_head.weight"] = (config.vocab_size, hidden)
    widths = layer_widths(config)
    extra_norms: dict[str, int] = {}
    if config.head_norms:
        extra_norms |= dict.fromkeys((names.query_norm, names.key_norm), config.head_dim)
    if config.branch_norms:
        extra_norms |= dict.fromkeys((names.attention_branch_norm, names.mlp_branch_norm), hidden)
    for block in range(config.num_layers):
        for place in (Place.QKV, Place.GATE_UP):
            shapes[norm_name(block, place, names)] = (hidden,)
        for norm, size in extra_norms.items():
            shapes[f"{names.block(block)}{norm}.weight"] = (size,)
        for place, modules in zip(Place, block_modules(config, block), strict=True):
            for name, rows in zip(modules.parts, modules.part_rows, strict=True):
                shapes[f"{name}.weight"] = (rows, widths[place])
    return shapes


def layer_widths(config: ModelConfig) -> dict[Place, int]:
    """Return the number of inputs of each layer of a block."""
    return {
        Place.QKV: config.hidden_size,
        Place.OUTPUT: config.num_heads * config.head_dim,
        Place.GATE_UP: config.hidden_size,
        Place.DOWN: config.intermediate_size,
    }


def matrix_shapes(
    shapes: Mapping[str, tuple[int, ...]], modules: Iterable[str]
) -> dict[str, tuple[int, int]]:
    """Return [O, K] of the modules' weights. Raises `CheckpointError` for one that is missing."""
    found = {}
    for name in modules:
        shape = shapes.get(f"{name}.weight", ())
        if len(shape) != 2:
            raise CheckpointError(
                f"the checkpoint has no matrix {name}.weight",
                "It is incomplete or of another architecture; fetch or make it again.",
            )
        found[name] = (shape[0], shape[1])
    return found


def check_specs(shapes: Mapping[str, tuple[int, int]], specs: ModuleSpecs) -> None:
    """Raise `QuantizationError` unless every module packs into words and divides into groups."""
    for spec in dict.fromkeys(specs.values()):
        if spec is not None:
            names = [name for name, own in specs.items() if own == spec]
            check_shapes({name: shapes[name] for name in names}, spec)


def check_shapes(shapes: Mapping[str, tuple[int, int]], spec: QuantSpec) -> None:
    """Raise `QuantizationError` unless every [O, K] packs into words and divides into groups."""
    for name, shape in shapes.items():
        if any(size % KERNEL_MULTIPLE for size in shape):
            raise QuantizationError(
                f"{name} is {shape[0]} x {shape[1]}, and packed codes need multiples of "
                f"{KERNEL_MULTIPLE}",
                "This model cannot be quantized.",
            )
    if spec.group_size is None:
        return
    unfit = [name for name, (_, columns) in shapes.items() if columns % spec.group_size]
    if unfit:
        lengths = sorted({columns for _, columns in shapes.values()})
        fitting = ", ".join(map(str, fitting_group_sizes(lengths)))
        raise QuantizationError(
            f"group size {spec.group_size} does not divide the {shapes[unfit[0]][1]} inputs of "
            f"{unfit[0]} ({len(unfit)} of {len(shapes)} layers do not fit; "
            f"the row lengths are {' and '.join(map(str, lengths))})",
            f"Sizes that fit every layer: {fitting} or one group per output channel.",
        )


def fitting_group_sizes(row_lengths: list[int]) -> list[int]:
    """Return the multiples of 32 that divide every row length, ascending."""
    common = math.gcd(*row_lengths)
    return [
        size for size in range(KERNEL_MULTIPLE, common + 1, KERNEL_MULTIPLE) if common % size == 0
    ]
