"""RMSNorm in Triton and in torch against its definition: fused parts give what the parts give."""

import pytest
import torch
import triton
import triton.language as tl
from tolerances import assert_close

from llmopt_kernels import rms_norm as rms_norm_kernels
from llmopt_kernels.rms_norm import reference as definition
from llmopt_kernels.rms_norm import triton as fast
from llmopt_kernels.token_rounding import round_tokens

DTYPES = [torch.float32, torch.float16, torch.bfloat16]
SHAPES = [(1, 7), (3, 64), (5, 100), (2, 1030)]
REAL_SHAPES = [(1, 4096), (2048, 4096), (7, 8192), (3, 5376)]


def make(shape, dtype, device, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator).to(device, dtype)


def exact(x, weight, eps):
    """The definition in float64."""
    wide = x.double()
    scale = torch.rsqrt(wide.pow(2).mean(dim=-1, keepdim=True) + eps)
    return wide * scale * weight.double()


def assert_matches_definition(shape, dtype, weight_dtype, device):
    x = make(shape, dtype, device)
    weight = make(shape[-1:], weight_dtype, device, seed=1)
    assert_close(fast.rms_norm_triton(x, weight, 1e-5), exact(x, weight, 1e-5))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_rms_norm(shape, dtype, device):
    assert_matches_definition(shape, dtype, dtype, device)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", REAL_SHAPES)
def test_rms_norm_at_real_shapes(shape, dtype, device):
    assert_matches_definition(shape, dtype, dtype, device)


def test_a_gain_may_have_more_precision_than_its_input(device):
    assert_matches_definition((3, 65), torch.bfloat16, torch.float32, device)


def test_eps_counts(device):
    x, weight = torch.full((1, 16), 1e-3, device=device), torch.ones(16, device=device)
    assert_close(fast.rms_norm_triton(x, weight, 1e-6), exact(x, weight, 1e-6))
    assert_close(fast.rms_norm_triton(torch.zeros_like(x), weight, 1e-6), torch.zeros(1, 16))


def test_a_view_of_the_heads_is_read_in_place(device):
    qkv = make((5, 6, 24), torch.float32, device)
    weight = make((24,), torch.float32, device, seed=1)
    for view in (qkv[:, :4], qkv[:, 4:5], qkv[1:3, 1:]):
        assert not view.is_contiguous() or len(view) == 1
        out = fast.rms_norm_triton(view, weight, 1e-5)
        assert out.is_contiguous()
        assert_close(out, exact(view, weight, 1e-5))
    wide = make((4, 50), torch.float32, device)
    assert_close(
        fast.rms_norm_triton(wide[:, :24], weight, 1e-5), exact(wide[:, :24], weight, 1e-5)
    )


def test_no_rows_are_no_work(device):
    out = fast.rms_norm_triton(torch.zeros(0, 8, device=device), torch.ones(8, device=device), 1e-5)
    assert out.shape == (0, 8)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(1, 64), (5, 100)])
def test_the_residual_sum_is_rounded_and_then_normalized(shape, dtype, device):
    x, residual = make(shape, dtype, device), make(shape, dtype, device, seed=1)
    before = residual.clone()
    weight = make(shape[-1:], dtype, device, seed=2)
    out, total = fast.add_rms_norm_triton(x, residual, weight, 1e-5)
    assert torch.equal(total, definition.add_rms_norm_reference(x, residual, weight, 1e-5)[1])
    assert_close(out, exact(total, weight, 1e-5))
    alone = fast.rms_norm_triton(total, weight, 1e-5)
    assert (out == alone).float().mean() > 0.97, "it is the rounded sum that is normalized"
    assert torch.equal(residual, before)


@pytest.mark.parametrize("channels", [20, 64])
def test_no_configuration_changes_a_result(channels, device):
    x, residual = (make((37, channels), torch.bfloat16, device, seed) for seed in (0, 1))
    weight = make((channels,), torch.bfloat16, device, seed=2)
    expected = fast.add_rms_norm_triton(x, residual, weight, 1e-5)
    configs = fast.candidates(channels)
    assert len(configs) > 4
    for config in configs:
        found = fast.add_rms_norm_triton(x, residual, weight, 1e-5, config=config)
        assert torch.equal(found[1], expected[1])
        assert_close(found[0], exact(expected[1], weight, 1e-5))


def test_a_launch_takes_the_configuration_of_its_class(device, monkeypatch):
    asked = []

    def launch_config(kernel, shape_class, default):
        asked.append((kernel, shape_class))
        return {"BLOCK_ROWS": 2, "num_warps": 1}

    monkeypatch.setattr(fast, "launch_config", launch_config)
    x, weight = make((3, 100), torch.float32, device), torch.ones(100, device=device)
    assert_close(fast.rms_norm_triton(x, weight, 1e-5), exact(x, weight, 1e-5))
    fast.add_rms_norm_quantize_triton(x, x, weight, 1e-5, "int8")
    fast.rms_norm_triton(x.repeat(100, 1), weight, 1e-5)
    assert asked == [("rms_norm", f"{rows}_c128") for rows in ("few", "few", "many")]
    given = {"BLOCK_ROWS": 1, "num_warps": 1}
    fast.rms_norm_triton(x, weight, 1e-5, config=given)
    fast.rms_norm_quantize_triton(x, weight, 1e-5, "int8", config=given)
    assert len(asked) == 3, "what is given is taken"


@pytest.mark.parametrize("channels", [32, 128, 1000, 4096, 16384, 65536])
def test_the_default_is_among_the_candidates(channels):
    assert fast.default_config(channels) in fast.candidates(channels)


@triton.jit
def round_kernel(
    value_ptr, code_ptr, scale_ptr, ROWS: tl.constexpr, N: tl.constexpr, FORM: tl.constexpr
):
    row, column = tl.arange(0, ROWS), tl.arange(0, N)
    index = row[:, None] * N + column[None, :]
    codes, scales = round_tokens(tl.load(value_ptr + index), FORM)
    tl.store(code_ptr + index, codes)
    tl.store(scale_ptr + row, scales)


@pytest.mark.parametrize("form", ["int8", "fp8"])
def test_tokens_are_rounded_bit_for_bit_as_defined(form, device):
    values = make((8, 256), torch.float32, "cpu")
    values[1] = 0  # scale 1
    values[2] = (torch.arange(256) - 127.5).clamp(-127, 127)  # scale 1 in int8: ties
    values[3] = (torch.arange(256) * 3.5).clamp(max=448)  # scale 1 in e4m3: ties
    values[4] *= 1e-30
    values[5] *= 1e30
    expected_codes, expected_scales = definition.QUANTIZERS[form](values)
    codes = torch.empty(values.shape, dtype=expected_codes.dtype, device=device)
    scales = torch.empty(8, device=device)
    round_kernel[(1,)](values.to(device), codes, scales, 8, 256, form)
    assert torch.equal(scales.cpu(), expected_scales[:, 0])
    assert torch.equal(codes.cpu().float(), expected_codes.float())


def assert_same_codes(codes, scales, expected_codes, expected_scales):
    """Alike but for elements beside a tie, where the norm was rounded otherwise."""
    assert_close(scales, expected_scales, dtype=torch.float32)
    assert (codes.float() == expected_codes.float()).float().mean() > 0.97


@pytest.mark.parametrize("form", ["int8", "fp8"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_rounding_is_that_of_the_rounded_output(form, dtype, device):
    x, residual = make((5, 100), dtype, device), make((5, 100), dtype, device, seed=1)
    x[2] = residual[2] = 0  # scale 1
    weight = make((100,), dtype, device, seed=2)
    quantize = definition.QUANTIZERS[form]
    codes, scales = fast.rms_norm_quantize_triton(x, weight, 1e-5, form)
    assert_same_codes(codes, scales, *quantize(fast.rms_norm_triton(x, weight, 1e-5)))
    codes, scales, total = fast.add_rms_norm_quantize_triton(x, residual, weight, 1e-5, form)
    out, expected_total = fast.add_rms_norm_triton(x, residual, weight, 1e-5)
    assert_same_codes(codes, scales, *quantize(out))
    assert torch.equal(total, expected_total)
    assert scales[2].item() == 1


@pytest.mark.parametrize("form", ["int8", "fp8"])
def test_what_runs_on_a_cpu_agrees_with_the_definitions(form):
    x, residual = (make((4, 33), torch.float32, "cpu", seed) for seed in (0, 1))
    weight = make((33,), torch.float32, "cpu", seed=2)
    out, total = rms_norm_kernels.add_rms_norm(x, residual, weight, 1e-5)
    expected_out, expected_total = definition.add_rms_norm_reference(x, residual, weight, 1e-5)
    assert_close(out, expected_out)
    assert torch.equal(total, expected_total)
    codes, scales, total = rms_norm_kernels.add_rms_norm_quantize(x, residual, weight, 1e-5, form)
    expected = definition.add_rms_norm_quantize_reference(x, residual, weight, 1e-5, form)
    assert torch.equal(total, expected[2])
    assert_same_codes(codes, scales, *expected[:2])
    codes, scales = rms_norm_kernels.rms_norm_quantize(total, weight, 1e-5, form)
    assert_close(scales, expected[1])
