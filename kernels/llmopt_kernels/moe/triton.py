"""A mixture of experts on a GPU: one launch multiplies the tokens of all experts by their weights.

out[p, o] = sum_k x[row(p), k] * w[e(p), o, k]  for the pairs p of a token and one of its experts e,
in the blocks of `blocks.py`, with dense weights or packed ones (`matmul.packed`); then
y[t] = sum of weight * out over the pairs of token t, in float32 and in the order of the experts, so
that results do not depend on timing. Definition: `reference.py`.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
import triton
import triton.language as tl

from llmopt_kernels.aot import AotCase
from llmopt_kernels.matmul.configs import ShapeClass, default_config
from llmopt_kernels.matmul.configs import candidates as matmul_candidates
from llmopt_kernels.matmul.launch import layout_constants, stored_tensors
from llmopt_kernels.matmul.packed import BLOCK, PackedWeight
from llmopt_kernels.matmul.triton import grouped_order, product_tile
from llmopt_kernels.moe.blocks import ExpertBlocks
from llmopt_kernels.tuning import Config, launch_config

KERNEL = "moe"
DENSE_BITS = 16
DENSE_BLOCK_K = 64
_CHANNELS_PER_PROGRAM = 1024


@triton.jit(do_not_specialize=["num_experts", "num_blocks"])
def expert_matmul_kernel(
    x, tokens, experts, firsts, ends, words, scales, zeros, offsets, table, out,
    num_experts, num_blocks, num_rows, num_columns, words_per_expert, scales_per_expert,
    ZERO: tl.constexpr, BITS: tl.constexpr, GROUP_SIZE: tl.constexpr, STEP: tl.constexpr,
    BLOCK_O: tl.constexpr, BLOCK_T: tl.constexpr, BLOCK_K: tl.constexpr, GROUP_T: tl.constexpr,
):  # fmt: skip
    """One tile [BLOCK_T, BLOCK_O] of out [P, O], of one block of pairs.

    x: [T, K], its rows taken by `tokens` [P], or [P, K] if tokens is None.
    """
    row_tile, block = grouped_order(tl.cdiv(num_rows, BLOCK_O), num_blocks, GROUP_T)
    expert = tl.load(experts + block).to(tl.int64)
    if expert < num_experts:
        pairs = tl.load(firsts + block) + tl.arange(0, BLOCK_T)
        has_pair = pairs < tl.load(ends + block)
        source = pairs
        if tokens is not None:
            source = tl.load(tokens + pairs, mask=has_pair, other=0)
        if scales is not None:
            scales += expert * scales_per_expert
        if zeros is not None:
            zeros += expert * scales_per_expert
        if offsets is not None:
            offsets += expert * scales_per_expert
        rows = row_tile * BLOCK_O + tl.arange(0, BLOCK_O)
        product = product_tile(
            x + source.to(tl.int64) * num_columns, has_pair, words + expert * words_per_expert,
            scales, zeros, offsets, table, rows, 0, tl.cdiv(num_columns, BLOCK_K), num_rows,
            num_columns, ZERO, BITS, GROUP_SIZE, STEP, BLOCK_O, BLOCK_T, BLOCK_K,
        )  # fmt: skip
        place = out + pairs[:, None].to(tl.int64) * num_rows + rows[None, :]
        inside = has_pair[:, None] & (rows[None, :] < num_rows)
        tl.store(place, tl.trans(product).to(out.dtype.element_ty), mask=inside)


@triton.jit
def combine_kernel(
    outputs, positions, weights, mixed, num_channels, NUM_CHOSEN: tl.constexpr, BLOCK: tl.constexpr
):
    """mixed[t] = the weighted sum of the outputs [P, C] of token t's pairs."""
    token = tl.program_id(0).to(tl.int64)
    channel = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = channel < num_channels
    total = tl.zeros((BLOCK,), tl.float32)
    for choice in tl.static_range(NUM_CHOSEN):
        position = tl.load(positions + token * NUM_CHOSEN + choice).to(tl.int64)
        weight = tl.load(weights + token * NUM_CHOSEN + choice)
        output = tl.load(outputs + position * num_channels + channel, mask=inside, other=0.0)
        total += output.to(tl.float32) * weight
    tl.store(mixed + token * num_channels + channel, total.to(mixed.dtype.element_ty), mask=inside)


@dataclass(frozen=True, slots=True)
class DenseStack:
    """The weights of all experts, [E, O, K] in the activation dtype."""

    weight: torch.Tensor

    @property
    def shape(self) -> tuple[int, int]:
        """(O, K)."""
        return self.weight.shape[1], self.weight.shape[2]


ExpertStack = DenseStack | PackedWeight


def expert_matmul_triton(
    x: torch.Tensor, blocks: ExpertBlocks, stack: ExpertStack, config: Config, *, gather: bool
) -> torch.Tensor:
    """The products of all pairs with the weights of their experts: -> [P, O] in the dtype of x.

    x: [T, K] if `gather`, else [P, K]. config: its BLOCK_T is the size of the blocks.
    """
    num_rows, num_columns = stack.shape
    num_blocks = len(blocks.expert)
    out = torch.empty(blocks.num_pairs, num_rows, dtype=x.dtype, device=x.device)
    row_tiles = -(-num_rows // config["BLOCK_O"])
    stored, sizes, constants = _stack_arguments(stack)
    expert_matmul_kernel[(row_tiles * num_blocks,)](
        x.contiguous(),
        blocks.tokens if gather else None,
        blocks.expert,
        blocks.first,
        blocks.end,
        *stored,
        out,
        stored[0].shape[0],
        num_blocks,
        num_rows,
        num_columns,
        *sizes,
        **constants,
        **config,
    )
    return out


def combine_triton(outputs: torch.Tensor, blocks: ExpertBlocks) -> torch.Tensor:
    """The weighted sums of the experts' outputs [P, C]: -> [T, C] in their dtype."""
    num_tokens, num_chosen = blocks.positions.shape
    num_channels = outputs.shape[1]
    mixed = torch.empty(num_tokens, num_channels, dtype=outputs.dtype, device=outputs.device)
    combine_kernel[(num_tokens, -(-num_channels // _CHANNELS_PER_PROGRAM))](
        outputs,
        blocks.positions,
        blocks.weights,
        mixed,
        num_channels,
        NUM_CHOSEN=num_chosen,
        BLOCK=_CHANNELS_PER_PROGRAM,
    )
    return mixed


def expert_config(num_pairs: int, num_experts: int, stack: ExpertStack) -> Config:
    """The configuration for a batch: that of the pairs which an expert gets on average, unless one
    was measured. K is never split: experts are programs enough.
    """
    each = -(-num_pairs // num_experts)
    shape = ShapeClass.of(
        DENSE_BITS if isinstance(stack, DenseStack) else stack.bits, each, *stack.shape
    )
    return launch_config(KERNEL, str(shape), _unsplit(shape))


def candidates(name: str) -> list[Mapping[str, int]]:
    """Configurations worth measuring for a class of shapes."""
    shape = ShapeClass.parse(name)
    block_ks = (DENSE_BLOCK_K, BLOCK) if shape.bits == DENSE_BITS else (BLOCK,)
    found = matmul_candidates(shape, block_ks)
    return [_without_split(config) for config in found if config["SPLIT_K"] == 1]


def shape_class(num_tokens: int, num_rows: int, num_columns: int, bits: int = DENSE_BITS) -> str:
    """The class of shapes; num_tokens: those that an expert gets on average."""
    return str(ShapeClass.of(bits, num_tokens, num_rows, num_columns))


def _unsplit(shape: ShapeClass) -> Config:
    block_k = DENSE_BLOCK_K if shape.bits == DENSE_BITS else BLOCK
    return _without_split(default_config(shape, block_k))


def _without_split(config: Config) -> Config:
    return {name: value for name, value in config.items() if name != "SPLIT_K"}


def _stack_arguments(
    stack: ExpertStack,
) -> tuple[tuple[Any, ...], tuple[int, int], dict[str, Any]]:
    """Tensors, elements of an expert in words and in scales, and constants of a stack."""
    if isinstance(stack, DenseStack):
        constants = {"ZERO": 0, "BITS": DENSE_BITS, "GROUP_SIZE": 0, "STEP": 0}
        return (stack.weight, None, None, None, None), (stack.weight[0].numel(), 0), constants
    sizes = stack.words[0].numel(), stack.scales[0].numel()
    return stored_tensors(stack), sizes, layout_constants(stack)


def aot_signatures() -> list[AotCase]:
    """Specializations for `llmopt_kernels.aot`."""
    combined = {"outputs": "*bf16", "positions": "*i32", "weights": "*fp32", "mixed": "*bf16"}
    return [
        *(_matmul_case(f"moe bf16 {tokens} tokens", tokens, 16) for tokens in (1, 128)),
        *(_matmul_case(f"moe w4 {tokens} tokens", tokens, 4) for tokens in (1, 128)),
        AotCase(
            "moe combine",
            combine_kernel,
            {**combined, "num_channels": "i32"},
            {"NUM_CHOSEN": 8, "BLOCK": _CHANNELS_PER_PROGRAM},
            aligned=("num_channels",),
        ),
    ]


def _matmul_case(name: str, num_tokens: int, bits: int) -> AotCase:
    dense = bits == DENSE_BITS
    config = dict(_unsplit(ShapeClass.of(bits, num_tokens, 4096, 4096)))
    warps, stages = config.pop("num_warps"), config.pop("num_stages")
    sizes = ("num_rows", "num_columns", "words_per_expert", "scales_per_expert")
    lists = dict.fromkeys(("tokens", "experts", "firsts", "ends"), "*i32")
    stored = {"words": "*bf16"} if dense else {"words": "*i32", "scales": "*bf16"}
    absent = ["zeros", "offsets", "table", *(["scales"] if dense else [])]
    integers = dict.fromkeys(("num_experts", "num_blocks", *sizes), "i32")
    group_size = 0 if dense else 128
    layout = {"ZERO": 8, "BITS": bits, "GROUP_SIZE": group_size, "STEP": group_size}
    return AotCase(
        name,
        expert_matmul_kernel,
        {"x": "*bf16", **lists, **stored, "out": "*bf16", **integers},
        {**dict.fromkeys(absent), **layout, **config},
        aligned=sizes,
        num_warps=warps,
        num_stages=stages,
        needs_wgmma=True,
    )
