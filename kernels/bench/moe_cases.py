"""The grouped product of a mixture of experts, on a GPU: bf16 and 4-bit stacks.

Knows nothing of timing. The law: every contender multiplies the same pairs of a token and one of
its experts, sorted by expert; sorting them is not measured.
"""

from collections.abc import Iterator
from functools import cache, partial
from typing import Any

import torch

from bench.case import OURS, Case, Contender, randn
from bench.closeness import checked_rows, closeness_problem, norm_problem
from bench.linear_cases import uniform_weight
from bench.shapes import Shapes
from llmopt_kernels.dispatch import uses_triton
from llmopt_kernels.matmul.packed import PackedWeight, pack
from llmopt_kernels.moe import route
from llmopt_kernels.moe.blocks import ExpertBlocks, expert_blocks

_GROUP_SIZE = 128
_STD = 0.02


def moe_cases(device: torch.device, shapes: Shapes) -> Iterator[Case]:
    """gate and up of all experts for batches of decodes and prompts."""
    if not uses_triton(torch.empty(0, device=device)):
        return
    rows, columns = 2 * shapes.expert_inner, shapes.expert_hidden
    for form in ("bf16", "w4g128"):
        make = dense_stack if form == "bf16" else packed_stack
        stack, exact = make(device, shapes.num_experts, rows, columns)
        for num_tokens in (*shapes.tokens, *shapes.prompts):
            logits = randn(device, num_tokens, shapes.num_experts, seed=3)
            x = randn(device, num_tokens, columns).bfloat16()
            routed = route(logits, shapes.num_chosen, normalize=True)
            yield _case(form, x, routed, stack, exact)


def _case(
    form: str,
    x: torch.Tensor,
    routed: tuple[torch.Tensor, torch.Tensor],
    stack: Any,
    exact: torch.Tensor,
) -> Case:
    from llmopt_kernels.moe.triton import expert_config, expert_matmul_triton

    weights, chosen = routed
    num_experts, rows, columns = exact.shape
    config = expert_config(chosen.numel(), num_experts, stack)
    blocks = expert_blocks(chosen, weights, num_experts, config["BLOCK_T"])
    counts = chosen.flatten().bincount(minlength=num_experts)
    num_used = int((counts > 0).sum())
    dense_bytes = 2 * num_used * rows * columns
    read = dense_bytes
    if isinstance(stack, PackedWeight):
        read = stack.num_bytes * num_used // num_experts
    traffic = 2 * (x.numel() + blocks.num_pairs * rows)
    ours = partial(expert_matmul_triton, x, blocks, stack, config, gather=True)
    contenders = [Contender(OURS, ours, traffic + read)]
    checked = checked_rows(blocks.num_pairs, x.device)
    expected = cache(lambda: _expected(x, blocks, counts, exact, checked))
    if x.is_cuda:
        gathered, ends = x[blocks.tokens.long()], counts.cumsum(0).int()
        by_torch = partial(_grouped_mm, gathered, exact.bfloat16(), ends)
        contenders.append(
            Contender(
                "torch grouped_mm",
                by_torch,
                traffic + dense_bytes,
                check=lambda out: norm_problem(out[checked], expected()),
            )
        )
    return Case(
        "moe",
        f"{form} {num_experts}x{rows}x{columns}",
        len(x),
        tuple(contenders),
        partial(_problem, expected, checked, columns),
        num_flops=2.0 * blocks.num_pairs * rows * columns,
    )


def _grouped_mm(x: torch.Tensor, weight: torch.Tensor, ends: torch.Tensor) -> torch.Tensor:
    out: torch.Tensor = torch._grouped_mm(x, weight.transpose(-2, -1), offs=ends)
    return out


def _expected(
    x: torch.Tensor,
    blocks: ExpertBlocks,
    counts: torch.Tensor,
    exact: torch.Tensor,
    rows: torch.Tensor,
) -> torch.Tensor:
    """These rows of [P, O] in float64, expert by expert."""
    experts = torch.arange(len(counts), device=x.device).repeat_interleave(counts)[rows]
    inputs = x[blocks.tokens.long()[rows]].double()
    out = torch.empty(len(rows), exact.shape[1], dtype=torch.float64, device=x.device)
    for expert in sorted(set(experts.tolist())):
        own = experts == expert
        out[own] = inputs[own] @ exact[expert].double().T
    return out


def _problem(expected: Any, rows: torch.Tensor, num_terms: int, out: Any) -> str | None:
    return closeness_problem(out[rows], expected(), num_terms=num_terms, magnitude=2 * _STD)


def dense_stack(
    device: torch.device, num_experts: int, rows: int, columns: int
) -> tuple[Any, torch.Tensor]:
    from llmopt_kernels.moe.triton import DenseStack

    weight = (randn(device, num_experts, rows, columns) * _STD).bfloat16()
    return DenseStack(weight), weight


def packed_stack(
    device: torch.device, num_experts: int, rows: int, columns: int
) -> tuple[PackedWeight, torch.Tensor]:
    """A stack of packed weights, and what it means."""
    stored = uniform_weight(device, num_experts * rows, columns, bits=4, group_size=_GROUP_SIZE)
    codes = stored.codes.view(num_experts, rows, columns)
    scales = stored.scales.view(num_experts, rows, -1)
    packed = [
        pack(codes[e], scales[e], bits=4, dtype=torch.bfloat16, zeros=stored.spec.midpoint)
        for e in range(num_experts)
    ]
    first = packed[0]
    stack = PackedWeight(
        words=torch.stack([weight.words for weight in packed]),
        scales=torch.stack([weight.scales for weight in packed]),
        zeros=None,
        offsets=None,
        table=None,
        zero=first.zero,
        bits=first.bits,
        group_size=first.group_size,
        shape=first.shape,
    )
    return stack, stored.dequantize().view(num_experts, rows, columns)
