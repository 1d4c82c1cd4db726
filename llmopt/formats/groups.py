"""The groups of a layer as read from a file: whether scales, zero points and g_idx fit the codes.

Shared by the formats; knows nothing of their layouts. The law: what contradicts the spec is a
CheckpointError that names the layer, before anything is computed with it.
"""

from collections.abc import Callable

import torch

from llmopt.errors import CheckpointError
from llmopt.formats.quantized import QuantSpec


def read_matrix(module: str, part: str, tensor: Callable[[str], torch.Tensor]) -> torch.Tensor:
    """One tensor of a layer, such as its qweight; CheckpointError unless it is a matrix."""
    found = tensor(f"{module}.{part}")
    if found.dim() != 2 or found.numel() == 0:
        raise CheckpointError(
            f"layer {module} has the {part} {list(found.shape)} where a matrix was expected",
            "The file is damaged; fetch or make the checkpoint again.",
        )
    return found


def check_groups(
    module: str, codes: torch.Tensor, scales: torch.Tensor, zeros: torch.Tensor, spec: QuantSpec
) -> None:
    """Raise CheckpointError unless scales and zero points are [O, G] for codes [O, K]."""
    rows, columns = codes.shape
    expected = (rows, spec.num_groups(columns))
    if tuple(scales.shape) != expected or tuple(zeros.shape) != expected:
        raise CheckpointError(
            f"layer {module} has scales {tuple(scales.shape)} and zero points "
            f"{tuple(zeros.shape)} where {list(expected)} was expected",
            "The tensors contradict quantization_config; fetch or make the checkpoint again.",
        )


def group_index(
    module: str, g_idx: torch.Tensor, spec: QuantSpec, columns: int
) -> torch.Tensor | None:
    """The group of each column as int32 [K], or None for the natural order. Raises CheckpointError
    unless every group has its share of columns.
    """
    size = spec.columns_per_group(columns)
    natural = torch.arange(columns, device=g_idx.device) // size
    found = g_idx.long()
    if torch.equal(found, natural):
        return None
    if found.shape != natural.shape or not torch.equal(found.sort().values, natural):
        raise CheckpointError(
            f"layer {module} has a g_idx that does not give every group {size} inputs",
            "The file is damaged; fetch or make the checkpoint again.",
        )
    return found.to(torch.int32)
