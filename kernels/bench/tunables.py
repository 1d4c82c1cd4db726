"""What there is to tune: the launches of each kernel by class of shapes, on a GPU.

Knows nothing of searching. The law: a launch is tuned at the largest batch of its class, on the
matrices of `bench.shapes`, with the arguments that a model gives it.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F

from bench.case import randn
from bench.linear_cases import SCHEMES, Scheme
from bench.shapes import Shapes
from llmopt.layers.linear import make_linear
from llmopt.layers.triton_linear import TritonLinear
from llmopt_kernels.fp8.triton import TritonFp8Weight
from llmopt_kernels.matmul import configs
from llmopt_kernels.matmul.launch import dequantized, packed_matmul
from llmopt_kernels.matmul.packed import BLOCK
from llmopt_kernels.matmul.scaled import launch as scaled
from llmopt_kernels.tuning import Config
from llmopt_kernels.w8a8.triton import TritonInt8Weight

_PACKED_BLOCKS: tuple[int, ...] = (BLOCK,)
_TOKENS = (16, 32, 64, 128, 256, 512, 1024, 2048)


@dataclass(frozen=True, slots=True)
class Tunable:
    """A class of shapes of a kernel. launch: with a configuration."""

    kernel: str
    shape_class: str
    default: Config
    candidates: Sequence[Config]
    launch: Callable[[Config], object]


@dataclass(frozen=True, slots=True)
class Switch:
    """From how many tokens on another way is faster. tuned: the class of each batch; launch: our
    kernel with its configuration; other: the other way.
    """

    kernel: str
    shape_class: str
    tuned: Mapping[int, Tunable]
    other: Mapping[int, Callable[[], object]]


def matmul_switches(kernel: str, device: torch.device, shapes: Shapes) -> Iterator[Switch]:
    """Each matrix of the schemes of a kernel, once for each class of shapes."""
    for scheme in SCHEMES:
        seen: set[str] = set()
        for rows, columns in shapes.matrices if scheme.kernel == kernel else ():
            switch = _switch(scheme, device, rows, columns)
            if switch.shape_class not in seen:
                seen.add(switch.shape_class)
                yield switch


def _switch(scheme: Scheme, device: torch.device, rows: int, columns: int) -> Switch:
    weight = scheme.make(device, rows, columns)
    layer: Any = make_linear([weight], [None], dtype=torch.bfloat16, device=device)
    inputs = {n: randn(device, n, columns, seed=n).bfloat16() for n in _TOKENS}
    if isinstance(layer, TritonLinear):
        packed = layer.weight
        bits, block_ks = packed.bits, _PACKED_BLOCKS
        ours = {n: partial(packed_matmul, x, packed, None) for n, x in inputs.items()}
        other = {n: partial(_by_cublas, x, packed) for n, x in inputs.items()}
    else:
        stored = layer._weight
        assert isinstance(stored, TritonInt8Weight | TritonFp8Weight), "a kernel of Triton"
        bits, block_ks = 8, scaled.BLOCK_KS
        ours = {n: partial(_scaled, x, stored) for n, x in inputs.items()}
        other = {n: partial(_scaled_by_cublas, x, stored) for n, x in inputs.items()}
    tuned = {}
    for num_tokens, launch in ours.items():
        shape = configs.ShapeClass.of(bits, num_tokens, rows, columns)
        tuned[num_tokens] = Tunable(
            scheme.kernel,
            str(shape),
            configs.default_config(shape, block_ks[0]),
            configs.candidates(shape, block_ks),
            launch,
        )
    weight_class = configs.ShapeClass.of(bits, 1, rows, columns).of_weight
    return Switch(scheme.kernel, weight_class, tuned, other)


def _by_cublas(x: torch.Tensor, packed: Any) -> torch.Tensor:
    return F.linear(x, dequantized(packed, x.dtype))


def _scaled(
    x: torch.Tensor, stored: TritonInt8Weight | TritonFp8Weight, config: Config
) -> torch.Tensor:
    form = "int8" if isinstance(stored, TritonInt8Weight) else "fp8"
    values, token_scales = scaled.quantize_tokens(x, form)
    return scaled.scaled_matmul(
        values, token_scales, stored.values, stored.scales, None, x.dtype, config
    )


def _scaled_by_cublas(x: torch.Tensor, stored: TritonInt8Weight | TritonFp8Weight) -> torch.Tensor:
    from llmopt_kernels.fp8.torch_scaled_mm import scaled_product
    from llmopt_kernels.w8a8.torch_int_mm import scaled_int8_product

    if isinstance(stored, TritonFp8Weight):
        form, product = "fp8", scaled_product
    else:
        form, product = "int8", scaled_int8_product
    values, token_scales = scaled.quantize_tokens(x, form)
    return product(values, token_scales, stored.values, stored.scales, None, x.dtype)
