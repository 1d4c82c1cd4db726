"""What there is to tune of the kernels that work row by row: norms and gated activations.

Knows nothing of searching. The law of `bench.tunables`: few rows are as many as their class has,
many are those of the longest prompt.
"""

from collections.abc import Iterator
from functools import partial

import torch

from bench.case import randn
from bench.shapes import Shapes
from bench.tunables import Tunable
from llmopt_kernels.gated_activation import triton as gated
from llmopt_kernels.rms_norm import triton as norms
from llmopt_kernels.tuning import Config

_EPS = 1e-5


def norm_tunables(device: torch.device, shapes: Shapes) -> Iterator[Tunable]:
    """The norm of a sum with the residual, and that of the query heads."""
    for num_tokens in (norms.FEW_ROWS, max(*shapes.prompts, norms.FEW_ROWS + 1)):
        x = randn(device, num_tokens, shapes.hidden).bfloat16()
        residual = randn(device, num_tokens, shapes.hidden, seed=1).bfloat16()
        yield _norm_tunable(x, residual)
    for num_tokens in (max(1, norms.FEW_ROWS // shapes.num_heads), norms.FEW_ROWS):
        yield _norm_tunable(
            randn(device, num_tokens, shapes.num_heads, shapes.head_dim).bfloat16(), None
        )


def _norm_tunable(x: torch.Tensor, residual: torch.Tensor | None) -> Tunable:
    channels = x.shape[-1]
    weight = randn(x.device, channels, seed=2).bfloat16()

    def launch(config: Config) -> object:
        if residual is None:
            return norms.rms_norm_triton(x, weight, _EPS, config=config)
        return norms.add_rms_norm_triton(x, residual, weight, _EPS, config=config)

    return Tunable(
        "rms_norm",
        norms.shape_class(x.numel() // channels, channels),
        norms.default_config(channels),
        norms.candidates(channels),
        launch,
    )


def gated_tunables(device: torch.device, shapes: Shapes) -> Iterator[Tunable]:
    """SwiGLU, alone and rounded to int8."""
    for num_tokens in (gated.FEW_ROWS, max(*shapes.prompts, gated.FEW_ROWS + 1)):
        gate_up = randn(device, num_tokens, 2 * shapes.inner).bfloat16()
        for rounded, launch in ((False, _gated), (True, _gated_rounded)):
            yield Tunable(
                "gated_activation",
                gated.shape_class(num_tokens, shapes.inner, rounded=rounded),
                gated.default_config(shapes.inner, rounded=rounded),
                gated.candidates(shapes.inner, rounded=rounded),
                partial(launch, gate_up),
            )


def _gated(gate_up: torch.Tensor, config: Config) -> object:
    return gated.gated_activation_triton(gate_up, "silu", config=config)


def _gated_rounded(gate_up: torch.Tensor, config: Config) -> object:
    return gated.gated_quantize_triton(gate_up, "silu", "int8", config=config)
