"""AWQ: scale a weight's important input channels up before rounding, and clip its outliers.

Lin et al., "AWQ: Activation-aware Weight Quantization for LLM Compression and Acceleration"
(arXiv 2306.00978). A channel that is multiplied by s in the weight and divided by s in what
produces it changes nothing, but is rounded s times finer. Pure maths; knows nothing of models,
data or files.
Law: s = 1 is always among the candidates, so a search never ends with more loss than no search.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from llmopt.errors import QuantizationError
from llmopt.formats.quantized import QuantSpec
from llmopt.quantize.rounding import split_groups

SMALLEST_MEAN = 1e-4
_STRIDE = 4


@dataclass(frozen=True, slots=True)
class AWQOptions:
    """How AWQ runs.

    num_ratios: steps between no scaling and scaling by the full size of the activations
    search_tokens: calibration tokens that candidates are judged on, in whole windows
    clip: whether the ranges of weight groups are shrunk where that lowers the loss (GPTQ searches
        ranges of its own)
    """

    num_ratios: int = 20
    search_tokens: int = 2048
    clip: bool = True

    def __post_init__(self) -> None:
        if self.num_ratios < 1 or self.search_tokens < 1:
            raise QuantizationError(
                f"{self.num_ratios} ratios on {self.search_tokens} tokens are no search",
                "Ask for at least 1 ratio and 1 token.",
            )


def mean_magnitudes(inputs: Tensor) -> Tensor:
    """Return mean |x| of each channel, float32 [K], of inputs [T, K]."""
    return inputs.abs().mean(dim=0, dtype=torch.float32)


def weight_magnitudes(weight: Tensor, spec: QuantSpec) -> Tensor:
    """Return how much of its group's range a column uses, float32 [K], averaged over the rows.

    1 where the column holds the largest weight of its group in every row of `weight` [O, K].
    """
    groups = split_groups(weight.float().abs(), spec)
    largest = groups.amax(dim=-1, keepdim=True).clamp(min=torch.finfo(torch.float32).tiny)
    return (groups / largest).reshape(weight.shape).mean(dim=0)


def candidate_scales(inputs: Tensor, weights: Tensor, num_ratios: int) -> list[Tensor]:
    """Return the scales to try, each float32 [K]: 1, then x^r / w^(1 - r) for r of an even grid.

    inputs, weights: magnitudes [K] of the input channels and of the weight's columns. Each
    candidate is normalized so that its largest and smallest entries are reciprocal.
    """
    inputs = inputs.float().clamp(min=SMALLEST_MEAN)
    weights = weights.float().clamp(min=SMALLEST_MEAN)
    ratios = [step / num_ratios for step in range(num_ratios)]
    scaled = [_normalize(inputs**ratio / weights ** (1 - ratio)) for ratio in ratios]
    return [torch.ones_like(inputs), *scaled]


def search_scales(candidates: Sequence[Tensor], loss: Callable[[Tensor], float]) -> Tensor:
    """Return the candidate of the lowest loss among those tried, about half of them.

    The first candidate, which is no scaling, is always tried and wins ties. The losses of the
    others, ordered by ratio, lie in one valley (measured, up to noise), so every fourth is tried,
    and then the neighbours of the best one, two steps and one step away.
    """
    losses = {index: loss(candidates[index]) for index in range(1, len(candidates), _STRIDE)}
    stride = _STRIDE
    while losses and stride > 1:
        stride //= 2
        best = min(losses, key=losses.__getitem__)
        for index in (best - stride, best + stride):
            if 0 < index < len(candidates) and index not in losses:
                losses[index] = loss(candidates[index])
    losses = {0: loss(candidates[0]), **losses}
    return candidates[min(losses, key=losses.__getitem__)]


def _normalize(scales: Tensor) -> Tensor:
    scales = scales.clamp(min=SMALLEST_MEAN)
    scales = scales / (scales.max().sqrt() * scales.min().sqrt())
    return torch.where(torch.isfinite(scales), scales, torch.ones_like(scales))
