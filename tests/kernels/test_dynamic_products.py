"""Products whose inputs are rounded at run time, against their definitions."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from llmopt_kernels.fp8.reference import fp8_reference
from llmopt_kernels.fp8.reference import quantize_tokens as to_fp8
from llmopt_kernels.fp8.torch_scaled_mm import why_not
from llmopt_kernels.w8a8 import torch_int_mm
from llmopt_kernels.w8a8.reference import (
    int8_product_reference,
    quantize_tokens,
    w8a8_reference,
)
from llmopt_kernels.w8a8.torch_int_mm import (
    int8_product,
    pack_dynamic_int8,
    why_not_on_cpu,
    why_not_on_cuda,
)

EXACT = pytest.mark.skipif(why_not_on_cpu() is not None, reason=str(why_not_on_cpu()))
TOLERANCE = {torch.float32: 2e-6, torch.bfloat16: 6e-3}


def randn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def relative_error(out: torch.Tensor, expected: torch.Tensor) -> float:
    return float((out.double() - expected.double()).norm() / expected.double().norm())


def test_each_token_is_rounded_on_its_own_scale():
    x = torch.tensor([[127.0, -63.5, 1.0, 0.49], [0.0, 0.0, 0.0, 0.0], [-2.54, 1.27, 0.03, 0.0]])
    codes, scales = quantize_tokens(x)
    assert codes[0].tolist() == [127, -64, 1, 0]  # -63.5 to the even neighbour
    assert codes[1].tolist() == [0] * 4
    assert codes[2].tolist()[:2] in ([-127, 63], [-127, 64])
    assert scales[:2].flatten().tolist() == [1.0, 1.0]


@settings(max_examples=30, deadline=None)
@given(tokens=st.integers(1, 4), scale=st.sampled_from([1e-6, 1.0, 3e4]), seed=st.integers(0, 99))
def test_rounding_errs_by_half_a_step_and_uses_the_whole_range(tokens, scale, seed):
    x = randn(tokens, 33, seed=seed) * scale
    codes, scales = quantize_tokens(x)
    assert (codes.abs().amax(dim=1) == 127).all()
    assert ((codes.float() * scales - x).abs() <= scales * 0.5001).all()


@EXACT
@settings(max_examples=40, deadline=None)
@given(
    tokens=st.sampled_from([1, 2, 3, 16, 17, 40]),
    rows=st.sampled_from([1, 8, 17, 64]),
    columns=st.sampled_from([2, 31, 64, 576]),
    extreme=st.booleans(),
    seed=st.integers(0, 99),
)
def test_integer_products_are_exact(tokens, rows, columns, extreme, seed):
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> torch.Tensor:
        codes = torch.randint(-128, 128, shape, generator=generator, dtype=torch.int8)
        return torch.where(codes < 0, -128, 127).to(torch.int8) if extreme else codes

    a, b = draw(tokens, columns), draw(rows, columns)
    product = int8_product(a, b)
    assert product.dtype == torch.int32
    assert torch.equal(product, int8_product_reference(a, b))
    slow = sum(int(x) * int(y) for x, y in zip(a[-1], b[-1], strict=True))
    assert int(product[-1, -1]) == slow


@EXACT
@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("tokens", [1, 5, 33])
@pytest.mark.parametrize("has_bias", [False, True])
def test_w8a8(dtype, tokens, has_bias):
    generator = torch.Generator().manual_seed(tokens)
    codes = torch.randint(0, 256, (48, 96), generator=generator, dtype=torch.uint8)
    scales = torch.rand(48, 1, generator=generator) + 0.01
    weight = pack_dynamic_int8(codes, scales)
    x = randn(tokens, 96, seed=tokens).to(dtype)
    bias = randn(48, seed=1).to(dtype) if has_bias else None
    expected = w8a8_reference(x.double(), weight.values, weight.scales)
    expected = expected if bias is None else expected + bias.double()
    out = weight.matmul(x, bias)
    assert out.dtype == dtype
    assert relative_error(out, expected) < TOLERANCE[dtype]
    assert weight.num_bytes == 48 * 96 + 48 * 4


def test_a_processor_that_saturates_is_found_out(monkeypatch):
    def saturating(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        pairs = a.int().unsqueeze(1) * b.T.int().unsqueeze(0)
        pairs = pairs.view(*pairs.shape[:2], -1, 2).sum(-1).clamp(-(2**15), 2**15 - 1)
        return pairs.sum(-1).to(torch.int32)

    def missing(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        raise NotImplementedError

    for product, words in ((saturating, "saturates"), (missing, "no int8 product")):
        monkeypatch.setattr(torch, "_int_mm", product)
        torch_int_mm.why_not_on_cpu.cache_clear()
        reason = torch_int_mm.why_not_on_cpu()
        assert reason is not None
        assert words in reason
    monkeypatch.undo()
    torch_int_mm.why_not_on_cpu.cache_clear()


def test_cuda_takes_sides_in_eights():
    assert why_not_on_cuda((16, 24)) is None
    assert "multiples of 8" in str(why_not_on_cuda((16, 20)))


def test_fp8_tokens_are_rounded_to_the_nearest_value():
    x = torch.tensor([[448.0, 17.0, -0.01, 0.0], [0.0, 0.0, 0.0, 0.0], [-1.0, 0.5, 0.3, 1e-9]])
    values, scales = to_fp8(x)
    assert values[0].float().tolist() == [448.0, 16.0, -0.009765625, 0.0]  # 17 ties to even
    assert scales.flatten().tolist() == pytest.approx([1.0, 1.0, 1 / 448])
    assert values[2, 0].float() == -448
    assert bool(torch.isfinite(values.float()).all())


def test_the_fp8_product_is_the_sum_of_rounded_products():
    x, weight = randn(3, 16), randn(5, 16, seed=1).to(torch.float8_e4m3fn)
    scales = torch.rand(5, generator=torch.Generator().manual_seed(2))
    values, token_scales = to_fp8(x)
    out = fp8_reference(x, weight, scales)
    for t in range(3):
        for o in range(5):
            total = sum(
                float(values[t, k].float()) * float(weight[o, k].float()) for k in range(16)
            )
            expected = total * float(token_scales[t]) * float(scales[o])
            assert float(out[t, o]) == pytest.approx(expected, rel=1e-5, abs=1e-6)


def test_there_is_no_fp8_product_on_a_cpu():
    assert "CUDA" in str(why_not((16, 16), torch.device("cpu"), torch.bfloat16))
