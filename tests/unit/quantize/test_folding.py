import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from llmopt.layers.linear import DenseLinear
from llmopt.layers.norm import RMSNorm
from llmopt.quantize.folding import (
    HeadLayout,
    divide_last_rows,
    divide_stored,
    fold_norm,
    multiply_columns,
)


@given(
    dtype=st.sampled_from([torch.bfloat16, torch.float16]),
    offset=st.sampled_from([0.0, 1.0]),
    seed=st.integers(0, 20),
)
def test_stored_gains_times_returned_scales_are_the_original_gain(dtype, offset, seed):
    generator = torch.Generator().manual_seed(seed)
    norm = torch.randn(64, generator=generator).to(dtype)
    norm[5] = -offset  # a channel that is switched off
    wanted = torch.randn(64, generator=generator).mul(2).exp()
    stored, scales = divide_stored(norm.float(), wanted, dtype, offset)
    assert stored.dtype == dtype
    gain = norm.float() + offset
    assert torch.allclose((stored.float() + offset) * scales, gain, rtol=1e-6, atol=0)
    assert scales[5] == 1.0
    if offset == 0:
        moved = scales != 1
        assert torch.allclose(scales[moved], wanted[moved], rtol=0.01)


def test_a_quotient_beyond_the_dtype_leaves_the_channel_alone():
    norm = torch.tensor([1.0, 60000.0, 1.0])
    quotient, scales = divide_stored(norm, torch.tensor([2.0, 0.5, 1e30]), torch.float16)
    assert quotient.tolist() == [0.5, 60000.0 // 32 * 32, 1.0]
    assert scales.tolist() == [2.0, 1.0, 1.0]


@pytest.mark.parametrize("offset", [0.0, 1.0])
def test_a_folded_norm_and_the_layer_behind_it_compute_what_they_did(offset):
    generator = torch.Generator().manual_seed(0)
    norm = RMSNorm(torch.randn(32, generator=generator), 1e-6, offset)
    linear = DenseLinear(torch.randn(8, 32, generator=generator), None)
    wanted = torch.rand(32, generator=generator) * 4 + 0.1
    folded, scales = fold_norm(norm, wanted, torch.bfloat16)
    x = torch.randn(5, 32, generator=generator)
    out = multiply_columns(linear, scales)(folded(x))
    assert torch.allclose(out, linear(norm(x)), rtol=1e-4, atol=1e-5)
    assert torch.allclose(folded.gain * scales, norm.gain, rtol=1e-6)
    assert torch.equal(folded.weight.to(torch.bfloat16).float(), folded.weight)


def test_the_last_rows_of_a_stacked_layer_and_their_bias_are_divided():
    linear = DenseLinear(torch.ones(4, 3), torch.tensor([1.0, 1.0, 1.0, 3.0]))
    divided = divide_last_rows(linear, torch.tensor([2.0, 4.0]), torch.bfloat16)
    assert divided.weight[:, 0].tolist() == [1.0, 1.0, 0.5, 0.25]
    assert divided.bias is not None
    assert divided.bias.tolist() == [1.0, 1.0, 0.5, 0.75]


def test_query_heads_share_the_channels_of_their_value_head():
    heads = HeadLayout(num_heads=4, num_kv_heads=2, head_dim=2)
    values = torch.arange(8.0)
    assert heads.share(values).tolist() == [1.0, 2.0, 5.0, 6.0]
    assert heads.largest(values).tolist() == [2.0, 3.0, 6.0, 7.0]
    assert heads.repeat(torch.tensor([1.0, 2.0, 3.0, 4.0])).tolist() == [1, 2, 1, 2, 3, 4, 3, 4]
