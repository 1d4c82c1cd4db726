"""Which tensors of a checkpoint are quantized, and whether a spec fits them.

Knows the module names of Hugging Face Llama checkpoints; knows nothing of methods.
Law: whatever cannot be written is refused here, before any work is done.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

from llmopt.errors import QuantizationError
from llmopt.formats.checkpoint import CheckpointReader
from llmopt.formats.quantized import QuantSpec
from llmopt.models.config import ModelConfig

KERNEL_MULTIPLE = 32  # columns and rows come in whole words of packed codes; kernels want it too


@dataclass(frozen=True, slots=True)
class LinearModules:
    """One linear layer of the runtime, and the checkpoint modules that are stacked in it."""

    name: str
    parts: tuple[str, ...]
    part_rows: tuple[int, ...]


def block_modules(config: ModelConfig, block: int) -> tuple[LinearModules, ...]:
    """Return the linear layers of one decoder block, in the order in which it runs them."""
    attention, mlp = f"model.layers.{block}.self_attn", f"model.layers.{block}.mlp"
    hidden, inner = config.hidden_size, config.intermediate_size
    q_rows, kv_rows = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
    qkv = tuple(f"{attention}.{projection}_proj" for projection in "qkv")
    return (
        LinearModules(f"{attention}.qkv", qkv, (q_rows, kv_rows, kv_rows)),
        LinearModules(f"{attention}.output", (f"{attention}.o_proj",), (hidden,)),
        LinearModules(f"{mlp}.gate_up", (f"{mlp}.gate_proj", f"{mlp}.up_proj"), (inner, inner)),
        LinearModules(f"{mlp}.down", (f"{mlp}.down_proj",), (hidden,)),
    )


def check_source(reader: CheckpointReader, spec: QuantSpec) -> None:
    """Raise `QuantizationError` unless this checkpoint can be quantized to `spec`.

    Looks at headers only: the source must not be quantized already, and the group size must
    divide the rows of every layer.
    """
    if "quantization_config" in reader.config:
        method = reader.config["quantization_config"].get("quant_method", "an unknown method")
        raise QuantizationError(
            f"{reader.path} is quantized already ({method})",
            "Quantize the original model instead.",
        )
    config = ModelConfig.from_hf(reader.config)
    linears = [linear for b in range(config.num_layers) for linear in block_modules(config, b)]
    names = [name for linear in linears for name in linear.parts]
    check_shapes({name: _matrix_shape(reader, name) for name in names}, spec)


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


def _matrix_shape(reader: CheckpointReader, module: str) -> tuple[int, int]:
    rows, columns = reader.shape(f"{module}.weight")
    return rows, columns
