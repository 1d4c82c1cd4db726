"""What is known of a linear layer's inputs over all calibration tokens.

Pure sums; knows nothing of models, methods or files.
Law: a statistic does not depend on which others are asked for, and sums are float32 or wider.
"""

import itertools
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from llmopt.quantize.rounding import check_finite


@dataclass(frozen=True, slots=True)
class InputStatistics:
    """Statistics of inputs x [T, K].

    mean_magnitude: mean |x|, float32 [K]
    mean_square: mean x^2, float32 [K]
    largest: max |x|, float32 [K]
    hessian: X^T X / T, float32 [K, K], if it was asked for
    sample: the rows [t, K] that were asked for
    cross: E[(o - x) x^T], float32 [K, K], o the inputs in the unquantized model, where these were
        given
    """

    mean_magnitude: Tensor
    mean_square: Tensor
    largest: Tensor
    hessian: Tensor | None = None
    sample: Tensor | None = None
    cross: Tensor | None = None

    def to(self, device: torch.device) -> "InputStatistics":
        """Return the same statistics on another device."""

        def move(tensor: Tensor | None) -> Tensor | None:
            return None if tensor is None else tensor.to(device)

        return InputStatistics(
            self.mean_magnitude.to(device),
            self.mean_square.to(device),
            self.largest.to(device),
            move(self.hessian),
            move(self.sample),
            move(self.cross),
        )

    def scaled(self, scales: Tensor) -> "InputStatistics":
        """Return the statistics of the inputs divided by `scales` [K]; without a sample
        and without `cross`.
        """
        hessian = self.hessian
        if hessian is not None:
            hessian = (hessian / scales).div_(scales.unsqueeze(1))
        return InputStatistics(
            mean_magnitude=self.mean_magnitude / scales,
            mean_square=self.mean_square / scales.square(),
            largest=self.largest / scales,
            hessian=hessian,
        )


@dataclass(frozen=True, slots=True)
class Wanted:
    """Which statistics are gathered besides the cheap ones. sample_rows: rows of x to keep."""

    hessian: bool = False
    sample_rows: Tensor | None = None


def required_hessian(statistics: InputStatistics | None) -> Tensor:
    """The Hessian that a method needs and was promised."""
    assert statistics is not None, "statistics are gathered where they are needed"
    assert statistics.hessian is not None, "the Hessian is summed where it is needed"
    return statistics.hessian


def required_cross(statistics: InputStatistics | None) -> Tensor:
    """The moments with the original inputs that a method needs and was promised."""
    assert statistics is not None, "statistics are gathered where they are needed"
    assert statistics.cross is not None, "the original inputs are given where they are needed"
    return statistics.cross


def gather(
    inputs: Iterable[Tensor],
    num_tokens: int,
    wanted: Wanted,
    name: str,
    originals: Iterable[Tensor] | None = None,
) -> InputStatistics:
    """Sum over the chunks of a layer's inputs, each [t, K], `num_tokens` in all.

    originals: the same chunks as the unquantized model has them. Raises `QuantizationError`, naming
    the layer, when an input is not finite.
    """
    sums: _Sums | None = None
    beside: Iterable[Tensor | None] = itertools.repeat(None) if originals is None else originals
    for chunk, original in zip(inputs, beside, strict=originals is not None):
        x = chunk.float()
        sums = sums or _Sums(x.shape[1], num_tokens, wanted, x.device)
        sums.add(x, original)
    assert sums is not None, "there is at least one chunk"
    return sums.finish(name)


class _Sums:
    def __init__(self, features: int, num_tokens: int, wanted: Wanted, device: torch.device):
        self._num_tokens = num_tokens
        self._wanted = wanted
        self._seen = 0
        self._magnitude = torch.zeros(features, dtype=torch.float64, device=device)
        self._square = torch.zeros_like(self._magnitude)
        self._largest = torch.zeros(features, device=device)
        self._hessian = torch.zeros(features, features, device=device) if wanted.hessian else None
        self._sample: list[Tensor] = []
        self._cross: Tensor | None = None

    def add(self, x: Tensor, original: Tensor | None) -> None:
        magnitudes = x.abs()
        self._magnitude += magnitudes.sum(dim=0)
        self._square += x.square().sum(dim=0)
        self._largest = torch.maximum(self._largest, magnitudes.amax(dim=0))
        if self._hessian is not None:
            self._hessian.addmm_(x.T, x, alpha=1.0 / self._num_tokens)
        if original is not None:
            if self._cross is None:
                self._cross = x.new_zeros(x.shape[1], x.shape[1])
            self._cross.addmm_((original.float() - x).T, x, alpha=1.0 / self._num_tokens)
        rows = self._wanted.sample_rows
        if rows is not None:
            here = (rows >= self._seen) & (rows < self._seen + len(x))
            self._sample.append(x[(rows[here] - self._seen).to(x.device)])
        self._seen += len(x)

    def finish(self, name: str) -> InputStatistics:
        assert self._seen == self._num_tokens, "every token is seen once"
        statistics = InputStatistics(
            mean_magnitude=(self._magnitude / self._num_tokens).float(),
            mean_square=(self._square / self._num_tokens).float(),
            largest=self._largest,
            hessian=self._hessian,
            sample=torch.cat(self._sample) if self._sample else None,
            cross=self._cross,
        )
        check_finite(f"the input of {name}", statistics.mean_square)
        return statistics
