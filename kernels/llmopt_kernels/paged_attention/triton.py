"""Paged attention on a GPU: one kernel for chunks of prompts, decodes and drafts that are verified,
and one that merges splits.

A program takes a tile (`launch.py`) through the keys that it may see, BLOCK_N at a time, with a
running softmax in float32 (Dao et al., 2022: FlashAttention). Keys that all of the tile sees need
no mask; keys that a window hides from all of it are never visited. FP8 and int8 keys are widened in
registers; the scales of int8 multiply scores and weights.
The law: no value on the device decides a launch, so calls can be captured in a CUDA graph.
"""

import torch
import triton
import triton.language as tl

from llmopt_kernels.aot import AotCase
from llmopt_kernels.paged_attention.aot_cases import calls, cases_of
from llmopt_kernels.paged_attention.arguments import (
    attend_arguments,
    class_of,
    merge_arguments,
    rows_of,
)
from llmopt_kernels.paged_attention.configs import tuned_config
from llmopt_kernels.paged_attention.launch import MAX_SPLITS, SMALL_TILE_ROWS, AttentionShape
from llmopt_kernels.paged_attention.metadata import AttentionMetadata
from llmopt_kernels.store_kv.cache import KVCache
from llmopt_kernels.tuning import Config

_H100_SMS = 132


@triton.jit
def _find_request(cu_seqlens_q, num_requests, tile, TILE_TOKENS: tl.constexpr):
    """The request that `tile` belongs to, and its place among that request's tiles.

    Request r has the tiles from (tokens before it) // TILE_TOKENS + r on. There may be one more
    than it needs, which has no token.
    """
    first_token = tl.load(cu_seqlens_q)
    low = 0
    high = num_requests
    while high - low > 1:
        middle = (low + high) // 2
        tokens_before = tl.load(cu_seqlens_q + middle) - first_token
        is_behind = tokens_before // TILE_TOKENS + middle > tile
        low = tl.where(is_behind, low, middle)
        high = tl.where(is_behind, middle, high)
    tokens_before = tl.load(cu_seqlens_q + low) - first_token
    return low, tile - tokens_before // TILE_TOKENS - low


@triton.jit
def _locate(
    table, first_row, start, positions, needed, BLOCK_N: tl.constexpr, BLOCK_SIZE: tl.constexpr
):
    """The block and the row in it of the keys at `positions`, which begin at `start`."""
    if table is None:
        block = tl.zeros_like(start)
        row = first_row + positions
    elif BLOCK_SIZE % BLOCK_N == 0:  # all in one block
        block = tl.load(table + start // BLOCK_SIZE)
        row = positions % BLOCK_SIZE
    else:
        block = tl.load(table + positions // BLOCK_SIZE, mask=needed, other=0)
        row = positions % BLOCK_SIZE
    return block, row


@triton.jit
def _load_rows(rows, place, columns, needed, MASKED: tl.constexpr, HEAD_DIM: tl.constexpr):
    """Keys or values [BLOCK_N, BLOCK_D]; zeros where they are not needed, as 0 * NaN is not 0."""
    pointer, block_stride, row_stride = rows
    block, row = place
    offsets = block.to(tl.int64) * block_stride + row.to(tl.int64) * row_stride
    pointers = pointer + offsets[:, None] + columns[None, :]
    if MASKED:
        mask = needed[:, None] & (columns < HEAD_DIM)[None, :]
        return tl.load(pointers, mask=mask, other=0.0)
    if columns.shape[0] != HEAD_DIM:
        return tl.load(pointers, mask=(columns < HEAD_DIM)[None, :], other=0.0)
    return tl.load(pointers)


@triton.jit
def _load_scales(scales, place, needed):
    """The scales of a head's int8 rows, float32 [BLOCK_N].

    Words of 4 bytes, which can be copied ahead of their use, hold the scales of two heads.
    """
    pointer, head, block_stride, row_stride = scales
    block, row = place
    offsets = block.to(tl.int64) * block_stride + row.to(tl.int64) * row_stride
    if pointer.dtype.element_ty == tl.int32:
        words = tl.load(pointer + head // 2 + offsets, mask=needed, other=0)
        words = tl.where(head % 2 == 0, words << 16, words & -65536)
        return words.to(tl.float32, bitcast=True)
    return tl.load(pointer + head + offsets, mask=needed, other=0.0).to(tl.float32)


@triton.jit
def _visit(
    state, begin, end, q, q_positions, columns, cache, limits, cap_scale, score_scale,
    MASKED: tl.constexpr, WINDOWED: tl.constexpr, SOFT_CAP: tl.constexpr, INT8: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_SIZE: tl.constexpr, HEAD_DIM: tl.constexpr,
):  # fmt: skip
    """Take a tile's running softmax (weighted sum, largest score, sum of weights) through the
    visits begin .. end - 1. Scores are in powers of two.
    """
    total, top, mass = state
    table, first_row, keys, values, key_scales, value_scales = cache
    last_position, first_seen, window, num_sinks, num_sink_steps, num_skipped = limits
    for visit in range(begin, end):
        step = visit + num_skipped
        if WINDOWED and MASKED:
            step = tl.where(visit < num_sink_steps, visit, step)
        start = step * BLOCK_N
        positions = start + tl.arange(0, BLOCK_N)
        needed = positions <= last_position
        if WINDOWED:
            needed = needed & ((positions >= first_seen) | (positions < num_sinks))
        place = _locate(table, first_row, start, positions, needed, BLOCK_N, BLOCK_SIZE)
        k = _load_rows(keys, place, columns, needed, MASKED, HEAD_DIM).to(q.dtype)
        scores = tl.dot(q, tl.trans(k), input_precision="ieee")
        if INT8:
            scores = scores * _load_scales(key_scales, place, needed)[None, :]
        if SOFT_CAP:
            scores = 1 - 2 / (tl.exp2(scores * cap_scale) + 1)  # the tangent of the quotient
        if MASKED:
            distance = q_positions[:, None] - positions[None, :]
            visible = distance >= 0
            if WINDOWED:
                visible = visible & ((distance < window) | (positions < num_sinks)[None, :])
            scores = tl.where(visible, scores, float("-inf"))
        new_top = tl.maximum(top, tl.max(scores, 1) * score_scale)
        base = tl.where(new_top == float("-inf"), 0.0, new_top) if MASKED else new_top
        weights = tl.exp2(scores * score_scale - base[:, None])
        decay = tl.exp2(top - base)
        mass = mass * decay + tl.sum(weights, 1)
        if INT8:
            weights = weights * _load_scales(value_scales, place, needed)[None, :]
        v = _load_rows(values, place, columns, needed, MASKED, HEAD_DIM).to(q.dtype)
        total = tl.dot(weights.to(q.dtype), v, total * decay[:, None], input_precision="ieee")
        top = new_top
    return total, top, mass


@triton.jit
def _steps(
    query_pos, seq_len, window, num_sinks, split, num_splits, MIN_STEPS: tl.constexpr,
    TILE_TOKENS: tl.constexpr, WINDOWED: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """Which steps along the keys this split of a tile visits, and which of them need no mask.

    query_pos: position of the tile's first token. A window leaves out the steps between the sinks
    and the first position that the tile sees. Returns `limits` for `_visit`, and the visits where
    the split begins, where the mask can be left out, where it cannot any more, and the end.
    """
    last_position = tl.minimum(query_pos + TILE_TOKENS, seq_len) - 1
    end_step = (last_position + BLOCK_N) // BLOCK_N
    first_seen = 0
    num_sink_steps = 0
    num_skipped = 0
    inner_begin = 0
    if WINDOWED:
        first_seen = tl.maximum(query_pos - window + 1, 0)
        num_sink_steps = tl.minimum(tl.cdiv(num_sinks, BLOCK_N), first_seen // BLOCK_N)
        num_skipped = first_seen // BLOCK_N - num_sink_steps
        inner_begin = tl.cdiv(tl.maximum(last_position - window + 1, 0), BLOCK_N) - num_skipped
    inner_end = tl.maximum(query_pos + 1, 0) // BLOCK_N - num_skipped
    num_visits = end_step - num_skipped
    length = tl.maximum(tl.cdiv(num_visits, num_splits), MIN_STEPS)
    begin = tl.minimum(split * length, num_visits)
    end = tl.minimum(begin + length, num_visits)
    inner_begin = tl.minimum(tl.maximum(inner_begin, begin), end)
    inner_end = tl.minimum(tl.maximum(inner_end, inner_begin), end)
    limits = (last_position, first_seen, window, num_sinks, num_sink_steps, num_skipped)
    return limits, begin, inner_begin, inner_end, end


@triton.jit
def _write(state, out, log_masses, row, is_row, columns, HEAD_DIM: tl.constexpr):
    """The tile's means, and with `log_masses` the base-2 logarithms of its masses."""
    total, top, mass = state
    mean = total / tl.where(mass > 0, mass, 1.0)[:, None]  # 0 where nothing is seen
    mask = is_row[:, None] & (columns < HEAD_DIM)[None, :]
    pointers = out + row[:, None] * HEAD_DIM + columns[None, :]
    tl.store(pointers, mean.to(out.dtype.element_ty), mask=mask)
    if log_masses is not None:
        tl.store(log_masses + row, top + tl.log2(mass), mask=is_row)


@triton.jit
def _softmax(
    q, positions, columns, cache, steps, cap_scale, score_scale,
    ONE_TILE: tl.constexpr, WINDOWED: tl.constexpr, SOFT_CAP: tl.constexpr, INT8: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_SIZE: tl.constexpr, HEAD_DIM: tl.constexpr,
):  # fmt: skip
    """The state of `_visit` after all visits. Small tiles wait for memory, and always mask."""
    limits, begin, inner_begin, inner_end, end = steps
    state = (
        tl.zeros([q.shape[0], q.shape[1]], tl.float32),
        tl.full([q.shape[0]], float("-inf"), tl.float32),
        tl.zeros([q.shape[0]], tl.float32),
    )
    if ONE_TILE:
        inner_begin = end
    state = _visit(
        state, begin, inner_begin, q, positions, columns, cache, limits, cap_scale, score_scale,
        True, WINDOWED, SOFT_CAP, INT8, BLOCK_N, BLOCK_SIZE, HEAD_DIM,
    )  # fmt: skip
    if not ONE_TILE:
        state = _visit(
            state, inner_begin, inner_end, q, positions, columns, cache, limits, cap_scale,
            score_scale, False, WINDOWED, SOFT_CAP, INT8, BLOCK_N, BLOCK_SIZE, HEAD_DIM,
        )  # fmt: skip
        state = _visit(
            state, inner_end, end, q, positions, columns, cache, limits, cap_scale, score_scale,
            True, WINDOWED, SOFT_CAP, INT8, BLOCK_N, BLOCK_SIZE, HEAD_DIM,
        )  # fmt: skip
    return state


@triton.jit(
    do_not_specialize=[
        *("num_requests", "first_token", "num_tokens", "num_splits"),
        *("window", "num_sinks", "table_stride"),
    ],
    do_not_specialize_on_alignment=["block_tables", "cu_seqlens_q", "seq_lens", "out"],
)
def _attend(
    query, key, value, key_scales, value_scales, block_tables, cu_seqlens_q, seq_lens,
    out, log_masses, num_requests, first_token, num_tokens, num_splits, window, num_sinks,
    cap_scale, score_scale, query_stride, query_head_stride, table_stride,
    key_block_stride, key_stride, key_head_stride,
    value_block_stride, value_stride, value_head_stride, scale_block_stride, scale_stride,
    NUM_KV_HEADS: tl.constexpr, GROUP: tl.constexpr, HEAD_DIM: tl.constexpr, BLOCK_D: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_SIZE: tl.constexpr,
    MIN_STEPS: tl.constexpr, ONE_TILE: tl.constexpr, WINDOWED: tl.constexpr,
    SOFT_CAP: tl.constexpr,
):  # fmt: skip
    """Attention of a tile over a split of its keys; the grid is (KH * tiles, splits).

    query: [T, H, D]; key, value: [N, S, KH, D] with scales [N, S, KH] or None, or without
    block_tables [T, KH, D]. The num_tokens tokens from first_token on go to out [num_tokens, H, D],
    or with log_masses [splits, num_tokens, H] to out [splits, num_tokens, H, D], for `_merge`.
    """
    TILE_TOKENS: tl.constexpr = BLOCK_M // GROUP
    head = tl.program_id(0) % NUM_KV_HEADS
    # Chunks are begun with their last tiles, which see most.
    request = (tl.num_programs(0) - 1 - tl.program_id(0)) // NUM_KV_HEADS
    tile = 0
    if not ONE_TILE:
        request, tile = _find_request(cu_seqlens_q, num_requests, request, TILE_TOKENS)
    first_row = tl.load(cu_seqlens_q + request)
    query_len = tl.load(cu_seqlens_q + request + 1) - first_row
    seq_len = tl.load(seq_lens + request)
    if tile * TILE_TOKENS >= query_len:
        return
    rows, columns = tl.arange(0, BLOCK_M), tl.arange(0, BLOCK_D)
    tokens = tile * TILE_TOKENS + rows // GROUP
    heads = head * GROUP + rows % GROUP
    is_row = (rows < TILE_TOKENS * GROUP) & (tokens < query_len)
    mask = is_row[:, None] & (columns < HEAD_DIM)[None, :]
    offsets = (first_row + tokens).to(tl.int64) * query_stride + heads * query_head_stride
    q = tl.load(query + offsets[:, None] + columns[None, :], mask=mask, other=0.0)

    query_pos = seq_len - query_len
    split = tl.program_id(1)
    steps = _steps(
        query_pos + tile * TILE_TOKENS, seq_len, window, num_sinks, split, num_splits,
        MIN_STEPS, TILE_TOKENS, WINDOWED, BLOCK_N,
    )  # fmt: skip
    INT8: tl.constexpr = key_scales is not None
    cache = (
        None if block_tables is None else block_tables + request.to(tl.int64) * table_stride,
        first_row,
        (key + head * key_head_stride, key_block_stride, key_stride),
        (value + head * value_head_stride, value_block_stride, value_stride),
        (key_scales, head, scale_block_stride, scale_stride) if INT8 else None,
        (value_scales, head, scale_block_stride, scale_stride) if INT8 else None,
    )
    state = _softmax(
        q, query_pos + tokens, columns, cache, steps, cap_scale, score_scale,
        ONE_TILE, WINDOWED, SOFT_CAP, INT8, BLOCK_N, BLOCK_SIZE, HEAD_DIM,
    )  # fmt: skip
    out_row = (split * num_tokens + first_row - first_token + tokens).to(tl.int64)
    _write(
        state, out, log_masses, out_row * (NUM_KV_HEADS * GROUP) + heads, is_row, columns, HEAD_DIM
    )


@triton.jit(do_not_specialize=["num_rows", "num_splits"], do_not_specialize_on_alignment=["out"])
def _merge(
    parts, log_masses, out, num_rows, num_splits,
    HEAD_DIM: tl.constexpr, COLUMNS: tl.constexpr, MAX_SPLITS: tl.constexpr,
):  # fmt: skip
    """Merge the splits of a row: the mean of their means, each weighted by its mass.

    parts: [splits, rows, D]; log_masses: [splits, rows] -> out [rows, D]. The grid is (rows, D /
    COLUMNS).
    """
    row = tl.program_id(0)
    splits = tl.arange(0, MAX_SPLITS)
    index = splits.to(tl.int64) * num_rows + row
    logs = tl.load(log_masses + index, mask=splits < num_splits, other=float("-inf"))
    largest = tl.max(logs, 0)
    weights = tl.exp2(logs - tl.where(largest == float("-inf"), 0.0, largest))
    weights = weights / tl.maximum(tl.sum(weights, 0), 1e-30)  # all 0 where nothing is seen
    columns = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    mask = (weights > 0)[:, None] & (columns < HEAD_DIM)[None, :]
    means = tl.load(parts + index[:, None] * HEAD_DIM + columns[None, :], mask=mask, other=0.0)
    mean = tl.sum(means * weights[:, None], 0)
    pointers = out + row.to(tl.int64) * HEAD_DIM + columns
    tl.store(pointers, mean.to(out.dtype.element_ty), mask=columns < HEAD_DIM)


def paged_attention_triton(
    query: torch.Tensor,
    key: KVCache,
    value: KVCache,
    metadata: AttentionMetadata,
    scale: float,
    window: int | None = None,
    soft_cap: float | None = None,
    *,
    num_splits: int | None = None,
    num_sms: int = _H100_SMS,
    config: Config | None = None,
) -> torch.Tensor:
    """Same signature and result as `paged_attention_reference`.

    num_splits: of every tile's keys, at most 64; None: as many as `num_sms` multiprocessors can
    use. config: the launch configuration; None: the tuned one. The last dimension of every tensor
    is contiguous.
    """
    assert query.stride(-1) == rows_of(key).stride(-1) == rows_of(value).stride(-1) == 1
    assert num_splits is None or 1 <= num_splits <= MAX_SPLITS
    small = config or tuned_config(class_of(query, key, small=True))
    large = config or tuned_config(class_of(query, key, small=False))
    num_kv_heads = rows_of(key).shape[-2]
    shape = AttentionShape(
        num_kv_heads=num_kv_heads,
        group=query.shape[1] // num_kv_heads,
        window=metadata.visible_window(window),
        large_tile_rows=large.get("BLOCK_M", SMALL_TILE_ROWS),
        num_sms=num_sms,
        num_splits=num_splits,
    )
    out = torch.empty(query.shape, dtype=query.dtype, device=query.device)
    for launch in metadata.launches(shape):
        config = small if launch.one_tile else large
        arguments = attend_arguments(
            query,
            key,
            value,
            out,
            metadata,
            launch,
            scale=scale,
            window=shape.window,
            soft_cap=soft_cap,
            config=config,
        )
        grid = (num_kv_heads * launch.num_tiles, launch.num_splits)
        _attend[grid](**arguments, num_warps=config["num_warps"], num_stages=config["num_stages"])
        if launch.num_splits > 1:
            merging = merge_arguments(arguments, out, launch)
            blocks = triton.cdiv(merging["HEAD_DIM"], merging["COLUMNS"])
            _merge[(merging["num_rows"], blocks)](**merging)
    return out


def aot_signatures() -> list[AotCase]:
    """The launches of `aot_cases.calls`, with the default configurations."""
    return [case for call in calls() for case in cases_of(call, _attend, _merge)]
