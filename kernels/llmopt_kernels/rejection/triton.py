"""Rejection sampling of drafts on a GPU, without waiting for the host. See `reference.py`.

    sampling.triton   [R, blocks]  what each row may draw, and the token that it draws
    take_kernel       [B]          how many tokens of each draft are taken
    residual_kernel   [B, blocks]  only if a draft was drawn: what each block of p - q weighs
    replace_kernel    [B]          the same: the token in place of the first that was not taken

p is a row's integer weights over their sum, the law of the sampler. The residual is kept in
integers, multiples of 2^-60 (rounded down), so its sums depend on no order either.
"""

import torch
import triton
import triton.language as tl

from llmopt_kernels.aot import AotCase
from llmopt_kernels.rejection.draft_params import DraftKind, DraftParams
from llmopt_kernels.rejection.reference import REPLACE_STREAM, TAKE_STREAM
from llmopt_kernels.sampling.row_math import (
    target_of,
    uniform_bits,
)
from llmopt_kernels.sampling.row_params import RowParams
from llmopt_kernels.sampling.triton import (
    DEFAULT,
    draw_token,
    pick_tokens,
    target_probs,
    weigh_rows,
)
from llmopt_kernels.tuning import Config

RESIDUAL_ONE = tl.constexpr(2.0**60)
TAKE = tl.constexpr(TAKE_STREAM)
REPLACE = tl.constexpr(REPLACE_STREAM)
DRAWN_KIND = tl.constexpr(int(DraftKind.DRAWN))
FORCED_KIND = tl.constexpr(int(DraftKind.FORCED))


@triton.jit
def stream_bits(table_ptr, num_rows, row, STREAM: tl.constexpr):
    """The 53 bits of a row in a stream of its own."""
    seed = tl.load(table_ptr + 4 * num_rows + row).to(tl.uint64, bitcast=True) ^ STREAM
    position = tl.load(table_ptr + 5 * num_rows + row)
    return uniform_bits(seed.to(tl.int64, bitcast=True), position)


@triton.jit
def take_kernel(
    logits_ptr, row_stride, table_ptr, max_ptr, arg_ptr, threshold_ptr, weight_ptr,
    request_ptr, draft_ptr, prob_ptr, drawn_ptr, out_ptr,
    num_requests, num_rows, vocab_size, num_blocks,
    LIMITED: tl.constexpr, BLOCKS: tl.constexpr,
):  # fmt: skip
    """One request: tokens taken, the token behind them if none was refused, and finiteness."""
    request = tl.program_id(0)
    first = tl.load(request_ptr + request).to(tl.int32)
    length = tl.load(request_ptr + num_requests + request).to(tl.int32)
    kind = tl.load(request_ptr + 2 * num_requests + request)
    forced = tl.load(request_ptr + 3 * num_requests + request).to(tl.int32)
    first_prob = tl.load(request_ptr + 4 * num_requests + request)
    finite = tl.load(drawn_ptr + num_rows + first)
    taken = tl.full([], 0, tl.int32)
    for j in range(length):
        row = first + j
        finite = tl.minimum(finite, tl.load(drawn_ptr + num_rows + row + 1))
        token = tl.load(draft_ptr + row)
        takes = tl.load(drawn_ptr + row) == token
        if kind == DRAWN_KIND:
            only = token.to(tl.int32) + tl.zeros([1], dtype=tl.int32)
            p = target_probs(
                logits_ptr, row_stride, table_ptr, max_ptr, arg_ptr, threshold_ptr, weight_ptr,
                row, only, num_rows, vocab_size, num_blocks, LIMITED, BLOCKS,
            )  # fmt: skip
            q = tl.load(prob_ptr + (first_prob + j) * vocab_size + token).to(tl.float64)
            draw = stream_bits(table_ptr, num_rows, row, TAKE).to(tl.float64) * 2.0**-53
            takes = draw * q < tl.sum(p, axis=0)
        taken += (takes & (taken == j)).to(tl.int32)
    if kind == FORCED_KIND:
        taken = forced
    tl.store(out_ptr + request, taken.to(tl.int64))
    tl.store(out_ptr + num_requests + request, tl.load(drawn_ptr + first + taken))
    tl.store(out_ptr + 2 * num_requests + request, finite)


@triton.jit
def residual_amounts(
    logits_ptr, row_stride, table_ptr, max_ptr, arg_ptr, threshold_ptr, weight_ptr,
    prob_ptr, row, prob_row, token, num_rows, vocab_size, num_blocks,
    LIMITED: tl.constexpr, BLOCKS: tl.constexpr,
):  # fmt: skip
    """max(0, p - q) of some tokens, as integers."""
    p = target_probs(
        logits_ptr, row_stride, table_ptr, max_ptr, arg_ptr, threshold_ptr, weight_ptr,
        row, token, num_rows, vocab_size, num_blocks, LIMITED, BLOCKS,
    )  # fmt: skip
    q = tl.load(prob_ptr + prob_row * vocab_size + token, mask=token < vocab_size, other=0.0)
    return (tl.maximum(p - q.to(tl.float64), 0.0) * RESIDUAL_ONE).to(tl.int64)


@triton.jit
def residual_kernel(
    logits_ptr, row_stride, table_ptr, max_ptr, arg_ptr, threshold_ptr, weight_ptr,
    request_ptr, prob_ptr, out_ptr, residual_ptr, num_requests, num_rows, vocab_size, num_blocks,
    LIMITED: tl.constexpr, BLOCK: tl.constexpr, BLOCKS: tl.constexpr,
):  # fmt: skip
    """One block of one request, if a drawn token of it was not taken."""
    request, block = tl.program_id(0), tl.program_id(1)
    length = tl.load(request_ptr + num_requests + request)
    kind = tl.load(request_ptr + 2 * num_requests + request)
    taken = tl.load(out_ptr + request)
    if (kind == DRAWN_KIND) & (taken < length):
        row = (tl.load(request_ptr + request) + taken).to(tl.int32)
        prob_row = tl.load(request_ptr + 4 * num_requests + request) + taken
        amounts = residual_amounts(
            logits_ptr, row_stride, table_ptr, max_ptr, arg_ptr, threshold_ptr, weight_ptr,
            prob_ptr, row, prob_row, block * BLOCK + tl.arange(0, BLOCK),
            num_rows, vocab_size, num_blocks, LIMITED, BLOCKS,
        )  # fmt: skip
        tl.store(residual_ptr + request * num_blocks + block, tl.sum(amounts, axis=0))


@triton.jit
def replace_kernel(
    logits_ptr, row_stride, table_ptr, max_ptr, arg_ptr, threshold_ptr, weight_ptr,
    request_ptr, prob_ptr, out_ptr, residual_ptr, num_requests, num_rows, vocab_size, num_blocks,
    LIMITED: tl.constexpr, BLOCK: tl.constexpr, BLOCKS: tl.constexpr,
):  # fmt: skip
    """The token of one request in place of the first drawn one that was not taken."""
    request = tl.program_id(0)
    length = tl.load(request_ptr + num_requests + request)
    kind = tl.load(request_ptr + 2 * num_requests + request)
    taken = tl.load(out_ptr + request)
    if (kind == DRAWN_KIND) & (taken < length):
        row = (tl.load(request_ptr + request) + taken).to(tl.int32)
        prob_row = tl.load(request_ptr + 4 * num_requests + request) + taken
        bits = stream_bits(table_ptr, num_rows, row, REPLACE)
        index = tl.arange(0, BLOCKS)
        sums = tl.load(
            residual_ptr + request * num_blocks + index, mask=index < num_blocks, other=0
        )
        whole = tl.sum(sums, axis=0)
        if whole > 0:
            target = target_of(bits, whole)
            block = tl.sum((tl.cumsum(sums, axis=0) <= target).to(tl.int32), axis=0)
            before = tl.sum(tl.where(index < block, sums, 0), axis=0)
            amounts = residual_amounts(
                logits_ptr, row_stride, table_ptr, max_ptr, arg_ptr, threshold_ptr, weight_ptr,
                prob_ptr, row, prob_row, block * BLOCK + tl.arange(0, BLOCK),
                num_rows, vocab_size, num_blocks, LIMITED, BLOCKS,
            )  # fmt: skip
            passed = before + tl.cumsum(amounts, axis=0) <= target
            token = block * BLOCK + tl.sum(passed.to(tl.int32), axis=0)
        else:
            token = draw_token(
                logits_ptr, row_stride, table_ptr, max_ptr, arg_ptr, threshold_ptr, weight_ptr,
                row, bits, num_rows, vocab_size, num_blocks, LIMITED, BLOCK, BLOCKS,
            )  # fmt: skip
        token = tl.minimum(token, vocab_size - 1)
        tl.store(out_ptr + num_requests + request, token.to(tl.int64))


def verify_triton(
    logits: torch.Tensor, params: RowParams, drafts: DraftParams, config: Config | None = None
) -> torch.Tensor:
    """Which tokens of each draft are taken, and the token behind them.

    Args:
        logits: [R, V] as of `sample_triton`; for a draft of k tokens k + 1 rows.
        params: of R rows, on the same device.
        drafts: of B requests, on the same device.
        config: as of `sample_triton`.

    Returns:
        int64 [3, B]: how many tokens are taken, the token that follows them, and 1, or 0 where a
        row of the request has logits that are not finite.
    """
    rows = weigh_rows(logits, params, config)
    drawn = pick_tokens(rows)
    num_requests = drafts.requests.shape[1]
    out = torch.empty((3, num_requests), dtype=torch.int64, device=logits.device)
    if not num_requests:
        return out
    probs = logits if drafts.probs is None else drafts.probs  # something to point at
    assert probs.is_contiguous() or drafts.probs is None, "rows of V probabilities"
    assert drafts.probs is None or params.drawn, "a drawn draft belongs to a row that is drawn"
    sizes = (num_requests, *rows.sizes)
    take_kernel[(num_requests,)](
        *rows.arguments,
        drafts.requests,
        drafts.token_ids,
        probs,
        drawn,
        out,
        *sizes,
        LIMITED=params.limited,
        BLOCKS=rows.constants["BLOCKS"],
    )
    if drafts.probs is not None:
        grid = (num_requests, rows.max.shape[1])
        residuals = torch.empty(grid, dtype=torch.int64, device=logits.device)
        fixed = (*rows.arguments, drafts.requests, probs, out, residuals, *sizes)
        residual_kernel[grid](*fixed, **rows.constants)
        replace_kernel[(num_requests,)](*fixed, **rows.constants)
    return out


def aot_signatures() -> list[AotCase]:
    """Every kernel, for bfloat16 logits and float32 probabilities of 128k tokens."""
    block, blocks = DEFAULT["BLOCK"], 64
    rows = {
        "logits_ptr": "*bf16",
        "row_stride": "i32",
        "table_ptr": "*i64",
        "max_ptr": "*fp32",
        "arg_ptr": "*i32",
        "threshold_ptr": "*i32",
        "weight_ptr": "*i64",
    }
    sizes = dict.fromkeys(("num_requests", "num_rows", "vocab_size", "num_blocks"), "i32")
    drafts = {"request_ptr": "*i64", "prob_ptr": "*fp32", "out_ptr": "*i64"}
    constants = {"LIMITED": True, "BLOCK": block, "BLOCKS": blocks}
    take = rows | drafts | {"draft_ptr": "*i64", "drawn_ptr": "*i64"} | sizes
    replace = rows | drafts | {"residual_ptr": "*i64"} | sizes
    return [
        AotCase("rejection take", take_kernel, take, {"LIMITED": True, "BLOCKS": blocks}),
        AotCase("rejection residual", residual_kernel, replace, constants),
        AotCase("rejection replace", replace_kernel, replace, constants),
    ]
