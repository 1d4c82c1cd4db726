"""What the sampling kernels compute with: order, weight and random number of a token.

Imports Triton: only Triton modules import it.

Order. A token's key is best - logit, in the dtype of the logits, as the bits of a float32: a
difference is at least 0, and such numbers are ordered like their bits. Smaller is likelier.
Weight. exp(-difference / temperature) is in [0, 1]; it is rounded down to a multiple of 2^-43 and
kept as an integer. Sums of integers do not depend on their order, so a draw depends neither on the
sizes of blocks nor on which program was first. 2^19 tokens fit into 62 bits.
Random number. SplitMix64, in 64-bit integers: the 53 bits of `reference.uniform`.
"""

import triton
import triton.language as tl

MAX_VOCAB_SIZE = 2**19
MINUS_LOG2_E = tl.constexpr(-1.4426950408889634)
WEIGHT_ONE = tl.constexpr(2.0**43)
MAX_KEY = tl.constexpr(0x7FFFFFFF)
GOLDEN_GAMMA = tl.constexpr(0x9E3779B97F4A7C15)
MIX_1 = tl.constexpr(0xBF58476D1CE4E5B9)
MIX_2 = tl.constexpr(0x94D049BB133111EB)


@triton.jit
def load_float(table_ptr, field: tl.constexpr, num_rows, row):
    """A float64 field of the parameters."""
    return tl.load(table_ptr + field * num_rows + row).to(tl.float64, bitcast=True)


@triton.jit
def mix(state):
    """The output function of SplitMix64."""
    state = (state ^ (state >> 30)) * MIX_1
    state = (state ^ (state >> 27)) * MIX_2
    return state ^ (state >> 31)


@triton.jit
def uniform_bits(seed, position):
    """uint64 with 53 bits: 2^53 * uniform(seed, position). seed: the bits of a uint64 in int64."""
    start = mix(seed.to(tl.uint64, bitcast=True) + GOLDEN_GAMMA)
    return mix(start + (position.to(tl.uint64, bitcast=True) + 1) * GOLDEN_GAMMA) >> 11


@triton.jit
def target_of(bits, total):
    """floor(bits * total / 2^53): less than total, for bits < 2^53. total: int64."""
    wide = total.to(tl.uint64, bitcast=True)
    high = tl.umulhi(bits, wide)
    low = bits * wide
    return ((high << 11) | (low >> 53)).to(tl.int64, bitcast=True)


@triton.jit
def best_of_row(max_ptr, arg_ptr, row, num_blocks, BLOCKS: tl.constexpr):
    """The greatest logit of a row from those of its blocks, its token, and whether all are finite
    or -inf: a block with a NaN has the greatest logit NaN.
    """
    block = tl.arange(0, BLOCKS)
    start = row.to(tl.int64) * num_blocks
    values = tl.load(max_ptr + start + block, mask=block < num_blocks, other=-float("inf"))
    broken = tl.max((values != values).to(tl.int32), axis=0)
    values = tl.where(values == values, values, -float("inf"))
    best, which = tl.max(values, axis=0, return_indices=True)
    finite = (broken == 0) & (tl.abs(best) < float("inf"))
    return best, tl.load(arg_ptr + start + which), finite


@triton.jit
def load_differences(logits_ptr, row, row_stride, token, vocab_size, best):
    """best - logit of some tokens, rounded to the dtype of the logits; inf behind the last."""
    start = logits_ptr + row.to(tl.int64) * row_stride
    logits = tl.load(start + token, mask=token < vocab_size, other=-float("inf")).to(tl.float32)
    return (best - logits).to(logits_ptr.dtype.element_ty).to(tl.float32)


@triton.jit
def key_of(difference):
    """An int32 that is ordered like the difference."""
    return difference.to(tl.int32, bitcast=True)


@triton.jit
def weight_of(difference, temperature):
    """exp(-difference / temperature) as float32, and as an integer."""
    weight = tl.exp2(difference * (MINUS_LOG2_E / temperature))
    return weight, (weight * WEIGHT_ONE).to(tl.int64)


@triton.jit
def kept_weights(difference, temperature, threshold, min_p):
    """Integer weights of the tokens that may be drawn, and 0 for the others."""
    weight, amount = weight_of(difference, temperature)
    kept = (key_of(difference) <= threshold) & (weight >= min_p)
    return tl.where(kept, amount, 0)
