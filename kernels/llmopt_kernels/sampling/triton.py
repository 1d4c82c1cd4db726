"""Fused sampling on a GPU: from logits to tokens without a sort and without waiting for the host.

    block_max_kernel    [R, blocks]  the greatest logit of each block; a NaN is remembered
    block_weight_kernel [R, blocks]  only if a row has top-k or top-p: what each block weighs
    gather_kernel       [R]          the same: see `limits.py`
    search_kernel       [R]          the same
    block_weight_kernel [R, blocks]  only if a row is drawn: what each block weighs after all limits
    pick_kernel         [R]          the block, then the token, at which the sum passes the draw
    probs_kernel        [R, blocks]  only if probabilities are asked for

The law is that of `reference.py`, and a row's token depends on no other row. It may differ from the
token of another implementation only where rounding decides: where the draw falls beside the border
of two tokens (weights are float32 exponentials, rounded down to multiples of 2^-43; a token that
weighs less is not drawn), or where a sum of weights is beside top_p. A logit's distance from the
best is rounded to the dtype of the logits: in bfloat16 a weight may be 2^-9 of that distance over
the temperature off, and tokens of one rounded distance are kept or cut together.
"""

from dataclasses import dataclass

import torch
import triton
import triton.language as tl

from llmopt_kernels.aot import AotCase
from llmopt_kernels.sampling.aot_cases import sampling_cases
from llmopt_kernels.sampling.limits import gather_kernel, search_kernel
from llmopt_kernels.sampling.row_math import (
    MAX_KEY,
    MAX_VOCAB_SIZE,
    best_of_row,
    kept_weights,
    load_differences,
    load_float,
    target_of,
    uniform_bits,
)
from llmopt_kernels.sampling.row_params import RowParams
from llmopt_kernels.tuning import Config, launch_config

DEFAULT: Config = {"BLOCK": 2048, "CHUNK": 8192, "CAPACITY": 4096}
GATHER_WARPS, SEARCH_WARPS = 8, 16  # they hold a chunk in registers
LOW_BITS = {torch.float32: 0, torch.float16: 13, torch.bfloat16: 16}  # of a key, which are 0


@triton.jit
def block_max_kernel(
    logits_ptr, row_stride, max_ptr, arg_ptr, vocab_size, num_blocks, BLOCK: tl.constexpr
):
    """One block of one row; of equal logits the first is the greatest."""
    row, block = tl.program_id(0).to(tl.int64), tl.program_id(1)
    token = block * BLOCK + tl.arange(0, BLOCK)
    mask = token < vocab_size
    logits = tl.load(logits_ptr + row * row_stride + token, mask=mask, other=-float("inf"))
    logits = logits.to(tl.float32)
    broken = tl.max((logits != logits).to(tl.int32), axis=0)
    best, index = tl.max(
        tl.where(logits == logits, logits, -float("inf")), axis=0, return_indices=True
    )
    tl.store(max_ptr + row * num_blocks + block, tl.where(broken != 0, float("nan"), best))
    tl.store(arg_ptr + row * num_blocks + block, block * BLOCK + index)


@triton.jit
def block_weight_kernel(
    logits_ptr, row_stride, table_ptr, max_ptr, arg_ptr, threshold_ptr, weight_ptr,
    num_rows, vocab_size, num_blocks,
    WHOLE: tl.constexpr, LIMITED: tl.constexpr, BLOCK: tl.constexpr, BLOCKS: tl.constexpr,
):  # fmt: skip
    """What may be drawn of one block of one row, or all of it; nothing for a greedy row."""
    row, block = tl.program_id(0), tl.program_id(1)
    temperature = load_float(table_ptr, 0, num_rows, row).to(tl.float32)
    total = tl.zeros([], dtype=tl.int64)
    if temperature > 0:
        min_p = 0.0 if WHOLE else load_float(table_ptr, 3, num_rows, row).to(tl.float32)
        best, _, _ = best_of_row(max_ptr, arg_ptr, row, num_blocks, BLOCKS)
        threshold = tl.load(threshold_ptr + row) if LIMITED and not WHOLE else MAX_KEY
        token = block * BLOCK + tl.arange(0, BLOCK)
        difference = load_differences(logits_ptr, row, row_stride, token, vocab_size, best)
        total = tl.sum(kept_weights(difference, temperature, threshold, min_p), axis=0)
    tl.store(weight_ptr + row.to(tl.int64) * num_blocks + block, total)


@triton.jit
def draw_token(
    logits_ptr, row_stride, table_ptr, max_ptr, arg_ptr, threshold_ptr, weight_ptr,
    row, bits, num_rows, vocab_size, num_blocks,
    LIMITED: tl.constexpr, BLOCK: tl.constexpr, BLOCKS: tl.constexpr,
):  # fmt: skip
    """The token of a row at which the sum of the weights passes bits / 2^53 of the whole."""
    temperature = load_float(table_ptr, 0, num_rows, row).to(tl.float32)
    min_p = load_float(table_ptr, 3, num_rows, row).to(tl.float32)
    threshold = tl.load(threshold_ptr + row) if LIMITED else MAX_KEY
    best, _, _ = best_of_row(max_ptr, arg_ptr, row, num_blocks, BLOCKS)
    index = tl.arange(0, BLOCKS)
    weights = tl.load(
        weight_ptr + row.to(tl.int64) * num_blocks + index, mask=index < num_blocks, other=0
    )
    target = target_of(bits, tl.sum(weights, axis=0))
    block = tl.sum((tl.cumsum(weights, axis=0) <= target).to(tl.int32), axis=0)
    before = tl.sum(tl.where(index < block, weights, 0), axis=0)
    token = block * BLOCK + tl.arange(0, BLOCK)
    difference = load_differences(logits_ptr, row, row_stride, token, vocab_size, best)
    kept = kept_weights(difference, temperature, threshold, min_p)
    place = tl.sum((before + tl.cumsum(kept, axis=0) <= target).to(tl.int32), axis=0)
    return tl.minimum(block * BLOCK + place, vocab_size - 1)


@triton.jit
def target_probs(
    logits_ptr, row_stride, table_ptr, max_ptr, arg_ptr, threshold_ptr, weight_ptr,
    row, token, num_rows, vocab_size, num_blocks, LIMITED: tl.constexpr, BLOCKS: tl.constexpr,
):  # fmt: skip
    """The probabilities of some tokens of a row, float64."""
    temperature = load_float(table_ptr, 0, num_rows, row).to(tl.float32)
    min_p = load_float(table_ptr, 3, num_rows, row).to(tl.float32)
    threshold = tl.load(threshold_ptr + row) if LIMITED else MAX_KEY
    best, _, _ = best_of_row(max_ptr, arg_ptr, row, num_blocks, BLOCKS)
    index = tl.arange(0, BLOCKS)
    weights = tl.load(
        weight_ptr + row.to(tl.int64) * num_blocks + index, mask=index < num_blocks, other=0
    )
    whole = tl.sum(weights, axis=0).to(tl.float64)
    difference = load_differences(logits_ptr, row, row_stride, token, vocab_size, best)
    kept = kept_weights(difference, temperature, threshold, min_p)
    return kept.to(tl.float64) * (1.0 / whole)


@triton.jit
def probs_kernel(
    logits_ptr, row_stride, table_ptr, max_ptr, arg_ptr, threshold_ptr, weight_ptr, out_ptr,
    num_rows, vocab_size, num_blocks,
    LIMITED: tl.constexpr, BLOCK: tl.constexpr, BLOCKS: tl.constexpr,
):  # fmt: skip
    """The probabilities of one block of one row, float32."""
    row, block = tl.program_id(0), tl.program_id(1)
    token = block * BLOCK + tl.arange(0, BLOCK)
    probs = target_probs(
        logits_ptr, row_stride, table_ptr, max_ptr, arg_ptr, threshold_ptr, weight_ptr,
        row, token, num_rows, vocab_size, num_blocks, LIMITED, BLOCKS,
    )  # fmt: skip
    start = out_ptr + row.to(tl.int64) * vocab_size
    tl.store(start + token, probs.to(tl.float32), mask=token < vocab_size)


@triton.jit
def pick_kernel(
    logits_ptr, row_stride, table_ptr, max_ptr, arg_ptr, threshold_ptr, weight_ptr, out_ptr,
    num_rows, vocab_size, num_blocks,
    DRAWN: tl.constexpr, LIMITED: tl.constexpr, BLOCK: tl.constexpr, BLOCKS: tl.constexpr,
):  # fmt: skip
    """One row's token, and whether its logits are finite or -inf."""
    row = tl.program_id(0)
    _, token, finite = best_of_row(max_ptr, arg_ptr, row, num_blocks, BLOCKS)
    if DRAWN:
        temperature = load_float(table_ptr, 0, num_rows, row)
        if finite & (temperature > 0):
            seed = tl.load(table_ptr + 4 * num_rows + row)
            position = tl.load(table_ptr + 5 * num_rows + row)
            token = draw_token(
                logits_ptr, row_stride, table_ptr, max_ptr, arg_ptr, threshold_ptr, weight_ptr,
                row, uniform_bits(seed, position), num_rows, vocab_size, num_blocks,
                LIMITED, BLOCK, BLOCKS,
            )  # fmt: skip
    tl.store(out_ptr + row, token.to(tl.int64))
    tl.store(out_ptr + num_rows + row, finite.to(tl.int64))


@dataclass(frozen=True, slots=True, eq=False)
class RowWeights:
    """What the rows of logits may draw, summed by blocks; kernels pick tokens from it.

    params: on the device. max, arg: float32 and int32 [R, blocks]. thresholds: int32 [R], only
    where a row is limited. weights: int64 [R, blocks], only where a row is drawn.
    """

    logits: torch.Tensor
    params: RowParams
    max: torch.Tensor
    arg: torch.Tensor
    thresholds: torch.Tensor
    weights: torch.Tensor
    block: int

    @property
    def sizes(self) -> tuple[int, int, int]:
        """num_rows, vocab_size, num_blocks."""
        rows, vocab_size = self.logits.shape
        return rows, vocab_size, self.max.shape[1]

    @property
    def arguments(self) -> tuple[torch.Tensor | int, ...]:
        """The first arguments of the kernels that pick."""
        return (
            self.logits,
            self.logits.stride(0),
            self.params.table,
            self.max,
            self.arg,
            self.thresholds,
            self.weights,
        )

    @property
    def constants(self) -> dict[str, int]:
        """The last arguments of the kernels that pick."""
        blocks = triton.next_power_of_2(self.max.shape[1])
        return {"LIMITED": self.params.limited, "BLOCK": self.block, "BLOCKS": blocks}


def shape_class(vocab_size: int) -> str:
    """Launch configurations are tuned by the size of the vocabulary."""
    return f"v{triton.next_power_of_2(vocab_size)}"


def candidates() -> list[Config]:
    """What a tuner tries."""
    return [
        {"BLOCK": block, "CHUNK": chunk, "CAPACITY": capacity}
        for block in (1024, 2048, 4096)
        for chunk in (4096, 8192)
        for capacity in (2048, 4096, 8192)
    ]


def sample_triton(
    logits: torch.Tensor, params: RowParams, config: Config | None = None
) -> torch.Tensor:
    """Choose one token per row.

    Args:
        logits: [R, V], V at most 2^19, rows contiguous; not modified.
        params: of R rows, on the same device.
        config: sizes of blocks; None: those tuned for this GPU. They do not change the tokens.

    Returns:
        int64 [2, R]: the tokens, and for each row 1, or 0 where a logit is NaN or the greatest is
        infinite; the token of such a row means nothing.
    """
    return pick_tokens(weigh_rows(logits, params, config))


def sample_with_probs_triton(
    logits: torch.Tensor, params: RowParams, config: Config | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """As `sample_triton`, for rows that are all drawn; and the probabilities that they are drawn
    from, float32 [R, V], which holds a probability to 6e-8 of itself.
    """
    rows = weigh_rows(logits, params, config)
    probs = torch.empty(logits.shape, dtype=torch.float32, device=logits.device)
    if len(logits):
        probs_kernel[rows.max.shape](*rows.arguments, probs, *rows.sizes, **rows.constants)
    return pick_tokens(rows), probs


def weigh_rows(logits: torch.Tensor, params: RowParams, config: Config | None = None) -> RowWeights:
    """Everything but the draw; arguments as of `sample_triton`."""
    num_rows, vocab_size = logits.shape
    assert vocab_size <= MAX_VOCAB_SIZE, "weights would overflow"
    assert logits.stride(1) == 1, "the vocabulary side by side"
    assert logits.dtype in LOW_BITS, "logits of a model"
    if config is None:
        config = launch_config("sampling", shape_class(vocab_size), DEFAULT)
    num_blocks = triton.cdiv(vocab_size, config["BLOCK"])
    grid = (num_rows, num_blocks)
    device = logits.device
    rows = RowWeights(
        logits=logits,
        params=params,
        max=torch.empty(grid, dtype=torch.float32, device=device),
        arg=torch.empty(grid, dtype=torch.int32, device=device),
        thresholds=torch.empty(num_rows, dtype=torch.int32, device=device),
        weights=torch.empty(grid, dtype=torch.int64, device=device),
        block=config["BLOCK"],
    )
    if not num_rows:
        return rows
    block_max_kernel[grid](
        logits, logits.stride(0), rows.max, rows.arg, vocab_size, num_blocks, BLOCK=config["BLOCK"]
    )
    if params.limited:
        _find_thresholds(rows, config)
    if params.drawn:
        block_weight_kernel[grid](*rows.arguments, *rows.sizes, WHOLE=False, **rows.constants)
    return rows


def pick_tokens(rows: RowWeights) -> torch.Tensor:
    """The draw; returns what `sample_triton` does."""
    num_rows = len(rows.logits)
    out = torch.empty((2, num_rows), dtype=torch.int64, device=rows.logits.device)
    if num_rows:
        pick_kernel[(num_rows,)](
            *rows.arguments, out, *rows.sizes, DRAWN=rows.params.drawn, **rows.constants
        )
    return out


def _find_thresholds(rows: RowWeights, config: Config) -> None:
    num_rows = len(rows.logits)
    device = rows.logits.device
    keys = torch.empty((num_rows, config["CAPACITY"]), dtype=torch.int32, device=device)
    counts = torch.empty(num_rows, dtype=torch.int32, device=device)
    read = (rows.logits, rows.logits.stride(0), rows.params.table, rows.max, rows.arg)
    constants = {
        "BLOCKS": rows.constants["BLOCKS"],
        "CHUNK": config["CHUNK"],
        "CAPACITY": config["CAPACITY"],
    }
    block_weight_kernel[rows.max.shape](*rows.arguments, *rows.sizes, WHOLE=True, **rows.constants)
    gather_kernel[(num_rows,)](
        *read, keys, counts, *rows.sizes, num_warps=GATHER_WARPS, **constants
    )
    search_kernel[(num_rows,)](
        *read, keys, counts, rows.weights, rows.thresholds, *rows.sizes,
        LOW_BIT=LOW_BITS[rows.logits.dtype], num_warps=SEARCH_WARPS, **constants,
    )  # fmt: skip


def aot_signatures() -> list[AotCase]:
    """Every kernel, for each dtype of logits."""
    kernels = {
        "max": (block_max_kernel, 4),
        "gather": (gather_kernel, GATHER_WARPS),
        "search": (search_kernel, SEARCH_WARPS),
        "weight": (block_weight_kernel, 4),
        "pick": (pick_kernel, 4),
        "probs": (probs_kernel, 4),
    }
    return sampling_cases(kernels, DEFAULT)
