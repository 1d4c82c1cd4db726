"""Top-k and top-p without sorting: the key of the last token that is kept, for each row.

Imports Triton: only Triton modules import it. The law: the threshold is the smallest key up to
which k tokens, or the share p of the weight, are reached; found bit by bit, it is exact.

`gather_kernel` counts the keys by their highest bits in one pass, and in another puts the likeliest
tokens together: a few thousand, which hold the top-k and nearly always the nucleus.
`search_kernel` finds the threshold among them in registers. Where they do not suffice it looks at
the whole row for each bit.
"""

import triton
import triton.language as tl

from llmopt_kernels.sampling.row_math import (
    MAX_KEY,
    best_of_row,
    key_of,
    load_differences,
    load_float,
    weight_of,
)

BIN_SHIFT = tl.constexpr(20)  # bins of the 11 highest bits below the sign
NUM_BINS = tl.constexpr(2048)
TOO_MANY = tl.constexpr(-1)  # candidates that were not gathered


@triton.jit
def gather_kernel(
    logits_ptr, row_stride, table_ptr, max_ptr, arg_ptr,
    candidate_ptr, count_ptr, num_rows, vocab_size, num_blocks,
    BLOCKS: tl.constexpr, CHUNK: tl.constexpr, CAPACITY: tl.constexpr,
):  # fmt: skip
    """For one row: the keys of the likeliest tokens, whole bins of them."""
    row = tl.program_id(0)
    temperature = load_float(table_ptr, 0, num_rows, row).to(tl.float32)
    top_k = tl.load(table_ptr + num_rows + row)
    top_p = load_float(table_ptr, 2, num_rows, row)
    best, _, finite = best_of_row(max_ptr, arg_ptr, row, num_blocks, BLOCKS)
    if finite & (temperature > 0) & ((top_k < vocab_size) | (top_p < 1)):
        bins = tl.zeros([NUM_BINS], dtype=tl.int32)
        for start in range(0, vocab_size, CHUNK):
            token = start + tl.arange(0, CHUNK)
            difference = load_differences(logits_ptr, row, row_stride, token, vocab_size, best)
            bins += tl.histogram(key_of(difference) >> BIN_SHIFT, NUM_BINS, token < vocab_size)
        counts = tl.cumsum(bins, axis=0)
        if top_k < vocab_size:  # bins up to the one that completes the k
            last = tl.sum((counts < top_k).to(tl.int32), axis=0)
        else:  # as many bins as there is room for
            last = tl.sum((counts <= CAPACITY).to(tl.int32), axis=0) - 1
        count = tl.sum(tl.where(tl.arange(0, NUM_BINS) <= last, bins, 0), axis=0)
        tl.store(count_ptr + row, tl.where(count <= CAPACITY, count, TOO_MANY))
        if count <= CAPACITY:
            first = 0
            for start in range(0, vocab_size, CHUNK):
                token = start + tl.arange(0, CHUNK)
                key = key_of(load_differences(
                    logits_ptr, row, row_stride, token, vocab_size, best
                ))  # fmt: skip
                chosen = ((key >> BIN_SHIFT) <= last) & (token < vocab_size)
                place = first + tl.cumsum(chosen.to(tl.int32), axis=0) - 1
                tl.store(candidate_ptr + row.to(tl.int64) * CAPACITY + place, key, mask=chosen)
                first += tl.sum(chosen.to(tl.int32), axis=0)


@triton.jit
def search_candidates(key, amount, goal, LOW_BIT: tl.constexpr):
    """The smallest key up to which the amounts sum to the goal, which they reach in all."""
    threshold = 0
    for step in range(31 - LOW_BIT):
        probe = threshold + (1 << (30 - step))
        reached = tl.sum(tl.where(key < probe, amount, 0), axis=0)
        threshold = tl.where(reached < goal, probe, threshold)
    return threshold


@triton.jit
def search_row(
    logits_ptr, row_stride, row, vocab_size, best, temperature, goal,
    BY_WEIGHT: tl.constexpr, LOW_BIT: tl.constexpr, CHUNK: tl.constexpr,
):  # fmt: skip
    """The same over all tokens of a row; an amount is a weight, or 1."""
    threshold = 0
    for step in range(31 - LOW_BIT):
        probe = threshold + (1 << (30 - step))
        reached = tl.zeros([CHUNK], dtype=tl.int64)
        for start in range(0, vocab_size, CHUNK):
            token = start + tl.arange(0, CHUNK)
            difference = load_differences(logits_ptr, row, row_stride, token, vocab_size, best)
            key = key_of(difference)
            if BY_WEIGHT:
                amount = weight_of(difference, temperature)[1]
            else:
                amount = (token < vocab_size).to(tl.int64)
            reached += tl.where(key < probe, amount, 0)
        threshold = tl.where(tl.sum(reached, axis=0) < goal, probe, threshold)
    return threshold


@triton.jit
def weight_up_to(
    logits_ptr, row_stride, row, vocab_size, best, temperature, limit, CHUNK: tl.constexpr
):
    """The weight of all tokens of a row with keys up to `limit`."""
    total = tl.zeros([CHUNK], dtype=tl.int64)
    for start in range(0, vocab_size, CHUNK):
        token = start + tl.arange(0, CHUNK)
        difference = load_differences(logits_ptr, row, row_stride, token, vocab_size, best)
        amount = weight_of(difference, temperature)[1]
        total += tl.where(key_of(difference) <= limit, amount, 0)
    return tl.sum(total, axis=0)


@triton.jit
def search_kernel(
    logits_ptr, row_stride, table_ptr, max_ptr, arg_ptr,
    candidate_ptr, count_ptr, weight_ptr, threshold_ptr, num_rows, vocab_size, num_blocks,
    LOW_BIT: tl.constexpr, BLOCKS: tl.constexpr, CHUNK: tl.constexpr, CAPACITY: tl.constexpr,
):  # fmt: skip
    """One row's threshold; MAX_KEY where it has no limits. weight_ptr: of blocks before limits."""
    row = tl.program_id(0)
    temperature = load_float(table_ptr, 0, num_rows, row).to(tl.float32)
    top_k = tl.load(table_ptr + num_rows + row)
    top_p = load_float(table_ptr, 2, num_rows, row)
    best, _, finite = best_of_row(max_ptr, arg_ptr, row, num_blocks, BLOCKS)
    threshold = tl.full([], MAX_KEY, tl.int32)
    if finite & (temperature > 0) & ((top_k < vocab_size) | (top_p < 1)):
        count = tl.load(count_ptr + row)
        index = tl.arange(0, BLOCKS)
        total = tl.sum(
            tl.load(
                weight_ptr + row.to(tl.int64) * num_blocks + index,
                mask=index < num_blocks,
                other=0,
            ),
            axis=0,
        )
        place = tl.arange(0, CAPACITY)
        key = tl.load(
            candidate_ptr + row.to(tl.int64) * CAPACITY + place, mask=place < count, other=MAX_KEY
        )
        difference = tl.where(place < count, key, 0).to(tl.float32, bitcast=True)
        amount = tl.where(place < count, weight_of(difference, temperature)[1], 0)
        if top_k < vocab_size:
            if count == TOO_MANY:
                threshold = search_row(
                    logits_ptr, row_stride, row, vocab_size, best, temperature, top_k,
                    False, LOW_BIT, CHUNK,
                )  # fmt: skip
                total = weight_up_to(
                    logits_ptr, row_stride, row, vocab_size, best, temperature, threshold, CHUNK
                )
            else:
                ones = (place < count).to(tl.int64)
                threshold = search_candidates(key, ones, top_k, LOW_BIT)
                total = tl.sum(tl.where(key <= threshold, amount, 0), axis=0)
        if top_p < 1:
            goal = tl.ceil(top_p * total.to(tl.float64)).to(tl.int64)
            goal = tl.minimum(tl.maximum(goal, 1), total)
            if tl.sum(amount, axis=0) >= goal:
                threshold = search_candidates(key, amount, goal, LOW_BIT)
            else:
                threshold = search_row(
                    logits_ptr, row_stride, row, vocab_size, best, temperature, goal,
                    True, LOW_BIT, CHUNK,
                )  # fmt: skip
    tl.store(threshold_ptr + row, threshold)
