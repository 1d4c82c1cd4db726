"""The products with packed and with dense weights: out[t, o] = sum_k x[t, k] * w[o, k] + bias[o].

Computed as w @ x^T, so that a few tokens are a narrow right side and the dequantized weight goes
from registers into the tensor cores (Hopper's wgmma takes its left side from there): it is never
written to shared memory. Shapes: x [T, K], out [T, O], packed weights as in `packed.py`.

A weight is (code - zero) * scale + offset or table[code] * scale, computed without loss and rounded
once to the dtype of x. Codes become floating-point numbers by setting bits: with the exponent of
2^m in front, an integer q in the mantissa is 2^m + q; zero is subtracted together with 2^m, which
is exact. One shift and one mask make two 4-bit codes.

With few tiles, K is split over programs, which write float32 parts that `sum_parts_kernel` adds in
their order: results do not depend on timing.
"""

import triton
import triton.language as tl

from llmopt_kernels.aot import AotCase


@triton.jit
def codes_of_words(words, ROWS: tl.constexpr, BLOCK_K: tl.constexpr):
    """The 4-bit codes of words [ROWS, BLOCK_K / 8], int32 [ROWS, BLOCK_K]."""
    j0 = words & 0x000F000F
    j1 = (words >> 4) & 0x000F000F
    j2 = (words >> 8) & 0x000F000F
    j3 = (words >> 12) & 0x000F000F
    pairs = tl.join(tl.join(j0, j2), tl.join(j1, j3))
    return _in_order_4(tl.join(pairs & 0xFFFF, pairs >> 16), ROWS, BLOCK_K)


@triton.jit
def levels_of_words_4(words, DTYPE: tl.constexpr, ROWS: tl.constexpr, BLOCK_K: tl.constexpr):
    """2^m + code of 4-bit codes in words [ROWS, BLOCK_K / 8], DTYPE [ROWS, BLOCK_K].

    2^m is the first number whose neighbours are integers: 128 in bfloat16, 1024 in float16. It is a
    constant because Triton 3.6 gives words the layout of the tensor cores only if all they meet is
    a constant or computed in the loop.
    """
    MAGIC: tl.constexpr = 0x64006400 if tl.float16 == DTYPE else 0x43004300
    j0 = (words & 0x000F000F) | MAGIC
    j1 = ((words >> 4) & 0x000F000F) | MAGIC
    j2 = ((words >> 8) & 0x000F000F) | MAGIC
    j3 = ((words >> 12) & 0x000F000F) | MAGIC
    pairs = tl.join(tl.join(j0, j2), tl.join(j1, j3))
    low = pairs.to(tl.int16).to(DTYPE, bitcast=True)
    high = (pairs >> 16).to(tl.int16).to(DTYPE, bitcast=True)
    return _in_order_4(tl.join(low, high), ROWS, BLOCK_K)


@triton.jit
def _in_order_4(places, ROWS: tl.constexpr, BLOCK_K: tl.constexpr):
    """[ROWS, words, s, h, p] as [ROWS, BLOCK_K]: see `packed.py`."""
    stored = tl.reshape(places, (ROWS, BLOCK_K // 128, 4, 4, 2, 2, 2))
    return tl.reshape(tl.permute(stored, (0, 1, 3, 4, 5, 2, 6)), (ROWS, BLOCK_K))


@triton.jit
def levels_of_words_8(words, ROWS: tl.constexpr, BLOCK_K: tl.constexpr):
    """2^23 + code of bytes in words [ROWS, BLOCK_K / 4], float32 [ROWS, BLOCK_K]."""
    h0p0, h0p1 = words & 0xFF, (words >> 8) & 0xFF
    h1p0, h1p1 = (words >> 16) & 0xFF, (words >> 24) & 0xFF
    bytes_ = tl.join(tl.join(h0p0, h1p0), tl.join(h0p1, h1p1))  # [ROWS, words, h, p]
    levels = (bytes_ | 0x4B000000).to(tl.float32, bitcast=True)
    stored = tl.reshape(levels, (ROWS, BLOCK_K // 128, 4, 8, 2, 2))
    return tl.reshape(tl.permute(stored, (0, 1, 3, 4, 2, 5)), (ROWS, BLOCK_K))


@triton.jit
def group_values(
    pointer, rows, block, num_rows, num_columns,
    GROUP_SIZE: tl.constexpr, STEP: tl.constexpr, ROWS: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """One value per group of a tile, in a shape that broadcasts to [ROWS, BLOCK_K].

    pointer: [G, Op]; GROUP_SIZE 0: one group; STEP: columns of the tile that share a group for
    sure. Groups beyond the last, of columns that only fill up, are read as the last.
    """
    padded_rows = tl.cdiv(num_rows, 128) * 128
    if STEP == BLOCK_K:
        group = 0
        if GROUP_SIZE > 0:
            group = block * BLOCK_K // GROUP_SIZE
        values = tl.load(pointer + group * padded_rows + rows)[:, None]
    else:
        group = (block * BLOCK_K + STEP * tl.arange(0, BLOCK_K // STEP)) // GROUP_SIZE
        group = tl.minimum(group, num_columns // GROUP_SIZE - 1)
        each = tl.load(pointer + group[None, :] * padded_rows + rows[:, None])
        spread = tl.broadcast_to(each[:, :, None], (ROWS, BLOCK_K // STEP, STEP))
        values = tl.reshape(spread, (ROWS, BLOCK_K))
    return values


@triton.jit
def packed_tile(
    words, scales, zeros, offsets, table, rows, block, num_rows, num_columns,
    ZERO: tl.constexpr, BITS: tl.constexpr, GROUP_SIZE: tl.constexpr, STEP: tl.constexpr,
    DTYPE: tl.constexpr, ROWS: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """The weights of `rows` [ROWS] in one block of columns, DTYPE [ROWS, BLOCK_K]."""
    WORDS: tl.constexpr = BLOCK_K * BITS // 32
    BASE: tl.constexpr = 8388608 if BITS == 8 else 1024 if tl.float16 == DTYPE else 128
    row_words = tl.cdiv(num_columns, 128) * (4 * BITS)
    place = block * WORDS + tl.arange(0, WORDS)
    tile = tl.load(words + rows[:, None] * row_words + place[None, :])
    scale = group_values(
        scales, rows, block, num_rows, num_columns, GROUP_SIZE, STEP, ROWS, BLOCK_K
    )
    if table is not None:
        codes = tl.reshape(codes_of_words(tile, ROWS, BLOCK_K), (ROWS * BLOCK_K,))
        values_of_codes = tl.load(table + tl.arange(0, 16))
        levels = tl.reshape(tl.gather(values_of_codes, codes, 0), (ROWS, BLOCK_K))
    else:
        if BITS == 4:
            levels = levels_of_words_4(tile, DTYPE, ROWS, BLOCK_K)
        else:
            levels = levels_of_words_8(tile, ROWS, BLOCK_K)
        if zeros is None:
            levels -= BASE + ZERO
        else:
            zero = group_values(
                zeros, rows, block, num_rows, num_columns, GROUP_SIZE, STEP, ROWS, BLOCK_K
            )
            levels -= (zero.to(tl.float32) + BASE).to(levels.dtype)
    if levels.dtype == scale.dtype and offsets is None:
        values = levels * scale
    else:
        values = levels.to(tl.float32) * scale.to(tl.float32)
        if offsets is not None:
            values += group_values(
                offsets, rows, block, num_rows, num_columns, GROUP_SIZE, STEP, ROWS, BLOCK_K
            )
    return values.to(DTYPE)


@triton.jit
def dense_tile(weight, rows, block, num_rows, num_columns, BLOCK_K: tl.constexpr):
    """The weights of `rows` [ROWS] of a row-major matrix [O, K] in one block of columns."""
    column = block * BLOCK_K + tl.arange(0, BLOCK_K)
    inside = (rows[:, None] < num_rows) & (column[None, :] < num_columns)
    place = weight + rows[:, None].to(tl.int64) * num_columns + column[None, :]
    return tl.load(place, mask=inside, other=0.0)


@triton.jit
def product_tile(
    x_rows, has_token, words, scales, zeros, offsets, table, rows, first_block, last_block,
    num_rows, num_columns,
    ZERO: tl.constexpr, BITS: tl.constexpr, GROUP_SIZE: tl.constexpr, STEP: tl.constexpr,
    ROWS: tl.constexpr, TOKENS: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """w[rows] @ x^T over blocks of columns first_block .. last_block - 1, float32 [ROWS, TOKENS].

    x_rows: pointers to the rows of x [TOKENS], those that exist where has_token; BITS 16: `words`
    is a dense matrix.
    """
    DTYPE: tl.constexpr = x_rows.dtype.element_ty
    product = tl.zeros((ROWS, TOKENS), tl.float32)
    for block in range(first_block, last_block):
        column = block * BLOCK_K + tl.arange(0, BLOCK_K)
        inside = has_token[None, :] & (column[:, None] < num_columns)
        x = tl.load(x_rows[None, :] + column[:, None], mask=inside, other=0.0)
        if BITS == 16:
            weight = dense_tile(words, rows, block, num_rows, num_columns, BLOCK_K)
        else:
            weight = packed_tile(
                words, scales, zeros, offsets, table, rows, block, num_rows, num_columns,
                ZERO, BITS, GROUP_SIZE, STEP, DTYPE, ROWS, BLOCK_K,
            )  # fmt: skip
        product = tl.dot(weight, x, product)
    return product


@triton.jit
def grouped_order(num_row_tiles, num_token_tiles, GROUP_T: tl.constexpr):
    """The tile of this program: GROUP_T tiles of tokens side by side, so that programs that run
    together share weights and tokens in the L2 cache.
    """
    program = tl.program_id(0)
    in_group = GROUP_T * num_row_tiles
    first = program // in_group * GROUP_T
    width = tl.minimum(num_token_tiles - first, GROUP_T)
    within = program % in_group
    return within // width, first + within % width


@triton.jit
def blocks_of_part(num_columns, BLOCK_K: tl.constexpr, SPLIT_K: tl.constexpr):
    """First and last (exclusive) block of columns of part program_id(1) of SPLIT_K."""
    num_blocks = tl.cdiv(num_columns, BLOCK_K)
    per_part = tl.cdiv(num_blocks, SPLIT_K)
    first = tl.program_id(1) * per_part
    return first, tl.minimum(first + per_part, num_blocks)


@triton.jit(do_not_specialize=["num_tokens"])
def packed_matmul_kernel(
    x, words, scales, zeros, offsets, table, bias, out, num_tokens, num_rows, num_columns,
    ZERO: tl.constexpr, BITS: tl.constexpr, GROUP_SIZE: tl.constexpr, STEP: tl.constexpr,
    BLOCK_O: tl.constexpr, BLOCK_T: tl.constexpr, BLOCK_K: tl.constexpr,
    SPLIT_K: tl.constexpr, GROUP_T: tl.constexpr,
):  # fmt: skip
    """One tile [BLOCK_T, BLOCK_O] of out [T, O], or of part program_id(1) of out float32
    [SPLIT_K, T, O] where K is split.
    """
    row_tile, token_tile = grouped_order(
        tl.cdiv(num_rows, BLOCK_O), tl.cdiv(num_tokens, BLOCK_T), GROUP_T
    )
    rows = row_tile * BLOCK_O + tl.arange(0, BLOCK_O)
    token = token_tile * BLOCK_T + tl.arange(0, BLOCK_T)
    first_block, last_block = blocks_of_part(num_columns, BLOCK_K, SPLIT_K)
    product = product_tile(
        x + token * num_columns, token < num_tokens, words, scales, zeros, offsets, table, rows,
        first_block, last_block, num_rows, num_columns,
        ZERO, BITS, GROUP_SIZE, STEP, BLOCK_O, BLOCK_T, BLOCK_K,
    )  # fmt: skip
    result = tl.trans(product)  # [BLOCK_T, BLOCK_O]
    if bias is not None:
        result += tl.load(bias + rows, mask=rows < num_rows, other=0.0)[None, :].to(tl.float32)
    row_of_out = tl.program_id(1) * num_tokens + token
    place = out + row_of_out[:, None].to(tl.int64) * num_rows + rows[None, :]
    inside = (token[:, None] < num_tokens) & (rows[None, :] < num_rows)
    tl.store(place, result.to(out.dtype.element_ty), mask=inside)


@triton.jit
def sum_parts_kernel(
    parts, token_scales, row_scales, bias, out, num_elements, num_rows,
    SPLIT_K: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """out[t, o] = the sum of parts[:, t, o], times token_scales[t] * row_scales[o] where there are
    scales, plus bias[o].
    """
    index = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = index < num_elements
    total = tl.load(parts + index, mask=inside, other=0)
    for part in tl.static_range(1, SPLIT_K):
        total += tl.load(parts + part * num_elements + index, mask=inside, other=0)
    result = total.to(tl.float32)
    if token_scales is not None:
        result *= tl.load(token_scales + index // num_rows, mask=inside, other=0.0)
        result *= tl.load(row_scales + index % num_rows, mask=inside, other=0.0)
    if bias is not None:
        result += tl.load(bias + index % num_rows, mask=inside, other=0.0).to(tl.float32)
    tl.store(out + index, result.to(out.dtype.element_ty), mask=inside)


@triton.jit
def dequantize_kernel(
    words, scales, zeros, offsets, table, out, num_rows, num_columns,
    ZERO: tl.constexpr, BITS: tl.constexpr, GROUP_SIZE: tl.constexpr, STEP: tl.constexpr,
    BLOCK_O: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """The weights of one tile, written to out [O, K]."""
    rows = tl.program_id(0) * BLOCK_O + tl.arange(0, BLOCK_O)
    block = tl.program_id(1)
    values = packed_tile(
        words, scales, zeros, offsets, table, rows, block, num_rows, num_columns,
        ZERO, BITS, GROUP_SIZE, STEP, out.dtype.element_ty, BLOCK_O, BLOCK_K,
    )  # fmt: skip
    column = block * BLOCK_K + tl.arange(0, BLOCK_K)
    inside = (rows[:, None] < num_rows) & (column[None, :] < num_columns)
    place = out + rows[:, None].to(tl.int64) * num_columns + column[None, :]
    tl.store(place, values, mask=inside)


def aot_signatures() -> list[AotCase]:
    """The kernels that are not specialized for a scheme; those that are belong to its folder."""
    tensors = {"parts": "*fp32", "out": "*bf16"}
    sizes = ("num_elements", "num_rows")
    return [
        AotCase(
            "sum of 4 parts",
            sum_parts_kernel,
            {**tensors, **dict.fromkeys(sizes, "i32")},
            {
                **dict.fromkeys(("token_scales", "row_scales", "bias")),
                "SPLIT_K": 4,
                "BLOCK": 1024,
            },
            aligned=sizes,
        )
    ]
