"""One comparison: a kernel, its shape, who computes it, and how an output is told right or wrong.

Knows nothing of particular kernels. The law: every contender has the same input and is held
against the same definition.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch

from bench.closeness import Check
from bench.shapes import Shapes

OURS = "llmopt"


@dataclass(frozen=True, slots=True)
class Contender:
    """Who computes.

    num_bytes: what it must read and write at least; kernel: what runs, in words; check: of its
    output, where another definition holds for it than for the case.
    """

    name: str
    call: Callable[[], object]
    num_bytes: int
    kernel: str = ""
    check: Check | None = None


@dataclass(frozen=True, slots=True)
class Case:
    """What is compared.

    num_tokens: of the batch; num_flops, flops_dtype: the operations, and the dtype of the ceiling
    that bounds them.
    """

    kernel: str
    shape: str
    num_tokens: int
    contenders: tuple[Contender, ...]
    check: Check
    num_flops: float = 0.0
    flops_dtype: str = "bfloat16"


Cases = Callable[[torch.device, Shapes], Iterator[Case]]


def randn(device: torch.device, *shape: int, seed: int = 0) -> torch.Tensor:
    """Normal numbers, the same on every device of a kind."""
    generator = torch.Generator(device).manual_seed(seed)
    return torch.randn(*shape, generator=generator, device=device)


def randint(device: torch.device, high: int, *shape: int, seed: int = 0) -> torch.Tensor:
    """Bytes below `high`."""
    generator = torch.Generator(device).manual_seed(seed)
    return torch.randint(0, high, shape, generator=generator, device=device, dtype=torch.uint8)
