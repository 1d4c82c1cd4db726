"""Products of 8-bit values, int8 or e4m3, with a scale per token and one per output row.

values[t, k] = round(x[t, k] / s[t])       s[t] = max_k |x[t, k]| / largest, 1 for a row of zeros
out[t, o] = s[t] * row_scales[o] * sum_k values[t, k] * weight[o, k] + bias[o]

as `w8a8.reference` and `fp8.reference` define them. Integers are summed exactly in int32, whatever
the order. e4m3 products are summed in float32; the tensor cores of sm_90 keep fewer bits within an
instruction's sum, so each block of BLOCK_K columns is added to the total outside of them.
"""

import triton
import triton.language as tl

from llmopt_kernels.matmul.triton import blocks_of_part, grouped_order
from llmopt_kernels.token_rounding import round_tokens


@triton.jit
def quantize_tokens_kernel(x, values, scales, num_columns, FORM: tl.constexpr, BLOCK: tl.constexpr):
    """One row of x [T, K] as values of the type of `values` [T, K] and its scale [T].

    BLOCK: at least K.
    """
    token = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, BLOCK)[None, :]
    place = token * num_columns + column
    row = tl.load(x + place, mask=column < num_columns, other=0.0).to(tl.float32)
    rounded, scale = round_tokens(row, FORM)
    tl.store(values + place, rounded, mask=column < num_columns)
    tl.store(scales + token + tl.arange(0, 1), scale)


@triton.jit(do_not_specialize=["num_tokens"])
def scaled_matmul_kernel(
    values, weight, token_scales, row_scales, bias, out, num_tokens, num_rows, num_columns,
    BLOCK_O: tl.constexpr, BLOCK_T: tl.constexpr, BLOCK_K: tl.constexpr,
    SPLIT_K: tl.constexpr, GROUP_T: tl.constexpr,
):  # fmt: skip
    """One tile [BLOCK_T, BLOCK_O] of out [T, O], or of part program_id(1) of the unscaled sums
    [SPLIT_K, T, O], int32 or float32, where K is split.

    values: [T, K]; weight: [O, K]; computed as weight @ values^T, as in `matmul.triton`.
    """
    row_tile, token_tile = grouped_order(
        tl.cdiv(num_rows, BLOCK_O), tl.cdiv(num_tokens, BLOCK_T), GROUP_T
    )
    rows = row_tile * BLOCK_O + tl.arange(0, BLOCK_O)
    token = token_tile * BLOCK_T + tl.arange(0, BLOCK_T)
    INTEGER: tl.constexpr = weight.dtype.element_ty == tl.int8
    SUM: tl.constexpr = tl.int32 if INTEGER else tl.float32
    weight_rows = weight + rows.to(tl.int64) * num_columns  # heads have more than 2^31 weights
    product = tl.zeros((BLOCK_O, BLOCK_T), SUM)
    first_block, last_block = blocks_of_part(num_columns, BLOCK_K, SPLIT_K)
    for block in range(first_block, last_block):
        column = block * BLOCK_K + tl.arange(0, BLOCK_K)
        of_weight = (rows[:, None] < num_rows) & (column[None, :] < num_columns)
        w = tl.load(weight_rows[:, None] + column[None, :], mask=of_weight, other=0.0)
        of_values = (token[None, :] < num_tokens) & (column[:, None] < num_columns)
        v = tl.load(values + token[None, :] * num_columns + column[:, None], of_values, other=0.0)
        product = tl.dot(w, v, product, out_dtype=SUM, max_num_imprecise_acc=BLOCK_K)
    if SPLIT_K == 1:
        result = tl.trans(product).to(tl.float32)
        result *= tl.load(token_scales + token, mask=token < num_tokens, other=0.0)[:, None]
        result *= tl.load(row_scales + rows, mask=rows < num_rows, other=0.0)[None, :]
        if bias is not None:
            result += tl.load(bias + rows, mask=rows < num_rows, other=0.0)[None, :].to(tl.float32)
    else:
        result = tl.trans(product)
    row_of_out = tl.program_id(1) * num_tokens + token
    place = out + row_of_out[:, None].to(tl.int64) * num_rows + rows[None, :]
    inside = (token[:, None] < num_tokens) & (rows[None, :] < num_rows)
    tl.store(place, result.to(out.dtype.element_ty), mask=inside)
