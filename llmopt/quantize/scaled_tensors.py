"""The tensors of a block that are not quantized, but change when scales are folded into them.

Knows the names of a checkpoint; knows nothing of how scales are found.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch

from llmopt.models.module_names import ModuleNames
from llmopt.quantize.block_task import BlockTask
from llmopt.quantize.layout import Place, norm_name
from llmopt.quantize.options import ReplacedTensor


@dataclass(frozen=True, slots=True)
class StoredDtypes:
    """In what the checkpoint stores the norm, and the bias of the rows that are divided."""

    norm: torch.dtype
    bias: torch.dtype


def stored_dtypes(
    task: BlockTask, place: Place, names: ModuleNames, dtype_of: Callable[[str], torch.dtype]
) -> StoredDtypes:
    """Look up the dtypes for the attention (place QKV) or the MLP (GATE_UP)."""
    bias = _bias_name(task, place)
    return StoredDtypes(
        norm=dtype_of(norm_name(task.index, place, names)),
        bias=torch.float32 if bias is None else dtype_of(bias),
    )


def scaled_tensors(
    task: BlockTask, place: Place, names: ModuleNames, dtypes: StoredDtypes
) -> list[ReplacedTensor]:
    """Return the norm and, if there is one, the bias, as they are after scaling."""
    block = task.block
    norm = block.input_norm if place is Place.QKV else block.post_norm
    name = norm_name(task.index, place, names)
    replaced = [ReplacedTensor(name, norm.weight.to(dtypes.norm))]
    bias_name, bias = _bias_name(task, place), task.linear(place).bias
    if bias_name is not None and bias is not None:
        last_part = bias[-task.modules[place].part_rows[-1] :]
        replaced.append(ReplacedTensor(bias_name, last_part.to(dtypes.bias)))
    return replaced


def _bias_name(task: BlockTask, place: Place) -> str | None:
    """The bias of the rows that are divided, those of the last part."""
    has_bias = task.linear(place).bias is not None
    return f"{task.modules[place].parts[-1]}.bias" if has_bias else None
