"""Products with packed integer weights against the float64 reference."""

import pytest
import torch
import torch.nn.functional as F
from tolerances import assert_close

from llmopt_kernels.matmul import product
from llmopt_kernels.matmul.launch import dequantized, packed_matmul
from llmopt_kernels.matmul.packed import PackedWeight, dequantize, pack
from llmopt_kernels.wna16.reference import wna16_reference
from llmopt_kernels.wna16.triton import wna16_triton

CONFIG = {
    "BLOCK_O": 64,
    "BLOCK_T": 16,
    "BLOCK_K": 128,
    "SPLIT_K": 1,
    "GROUP_T": 2,
    "num_warps": 4,
    "num_stages": 3,
}


def term_magnitude(weight: PackedWeight) -> float:
    """Twice the root mean square of a term with inputs of variance 1: rounding the weights then
    stays within 4 standard deviations of the error of a sum.
    """
    return 2 * dequantize(weight).double().square().mean().sqrt().item()


class Case:
    """A random weight, packed, and inputs for it."""

    def __init__(
        self,
        device: torch.device,
        shape: tuple[int, int, int],
        group_size: int,
        *,
        bits: int = 4,
        dtype: torch.dtype = torch.bfloat16,
        symmetric: bool = True,
        exact_scales: bool = True,
        seed: int = 0,
    ) -> None:
        tokens, rows, columns = shape
        generator = torch.Generator().manual_seed(seed)
        groups = columns // group_size
        self.codes = torch.randint(
            0, 1 << bits, (rows, columns), generator=generator, dtype=torch.uint8
        ).to(device)
        scales = torch.rand(rows, groups, generator=generator) * 0.1 + 0.01
        self.scales = (scales.to(dtype) if exact_scales else scales).to(device)
        zeros = torch.randint(0, 1 << bits, (rows, groups), generator=generator, dtype=torch.uint8)
        self.zeros = zeros.to(device)
        if symmetric:
            self.zeros = torch.full_like(self.zeros, 1 << (bits - 1))
        self.x = torch.randn(tokens, columns, generator=generator).to(device, dtype)
        self.bias = torch.randn(rows, generator=generator).to(device, dtype)
        self.packed: PackedWeight = pack(
            self.codes,
            self.scales,
            bits=bits,
            dtype=dtype,
            zeros=1 << (bits - 1) if symmetric else self.zeros,
        )

    def assert_matches_definition(self, out: torch.Tensor, *, bias: bool) -> None:
        expected = wna16_reference(self.x.double(), self.codes, self.scales, self.zeros)
        assert out.dtype == self.x.dtype
        assert_close(
            out,
            expected + self.bias.double() if bias else expected,
            num_terms=self.x.shape[1],
            magnitude=term_magnitude(self.packed),
        )


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize(
    ("bits", "group_size", "columns"),
    [
        (4, 16, 80),
        (4, 32, 160),
        (4, 64, 192),
        (4, 128, 384),
        (4, 256, 512),
        (4, 48, 144),
        (4, 72, 72),
        (4, 200, 200),
        (8, 16, 48),
        (8, 32, 96),
        (8, 128, 256),
        (8, 144, 144),
    ],
)
def test_every_group_size(device, bits, group_size, columns, symmetric, dtype):
    case = Case(device, (3, 37, columns), group_size, bits=bits, dtype=dtype, symmetric=symmetric)
    case.assert_matches_definition(packed_matmul(case.x, case.packed, None, CONFIG), bias=False)
    assert torch.equal(dequantized(case.packed, dtype), dequantize(case.packed).to(dtype))


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("symmetric", [True, False])
def test_scales_that_the_dtype_does_not_hold(device, bits, symmetric):
    case = Case(device, (2, 20, 128), 32, bits=bits, symmetric=symmetric, exact_scales=False)
    assert case.packed.scales.dtype == torch.float32
    case.assert_matches_definition(packed_matmul(case.x, case.packed, case.bias, CONFIG), bias=True)
    expected = dequantize(case.packed).bfloat16()
    assert torch.equal(dequantized(case.packed, torch.bfloat16), expected)


@pytest.mark.parametrize("parts", [1, 2, 5, 7])
@pytest.mark.parametrize("tokens", [1, 16, 17, 40])
def test_tiles_and_parts_have_tails(device, tokens, parts):
    case = Case(device, (tokens, 131, 640), 64, seed=tokens)
    out = packed_matmul(case.x, case.packed, case.bias, {**CONFIG, "SPLIT_K": parts})
    case.assert_matches_definition(out, bias=True)
    again = packed_matmul(case.x, case.packed, case.bias, {**CONFIG, "SPLIT_K": parts})
    assert torch.equal(out, again)


def test_rows_of_x_may_be_apart(device):
    case = Case(device, (6, 20, 128), 128)
    case.x = torch.stack([case.x, -case.x], dim=1)[:, 0]
    assert not case.x.is_contiguous()
    case.assert_matches_definition(packed_matmul(case.x, case.packed, None, CONFIG), bias=False)


def test_offsets_are_added(device):
    case = Case(device, (4, 30, 96), 32)
    offsets = torch.randn(30, 3, generator=torch.Generator().manual_seed(1)).to(device)
    weight = pack(case.codes, case.scales, bits=4, dtype=torch.bfloat16, zeros=8, offsets=offsets)
    expected = case.x.double() @ dequantize(weight).double().T
    out = packed_matmul(case.x, weight, None, CONFIG)
    assert_close(out, expected, num_terms=96, magnitude=term_magnitude(weight))
    assert torch.equal(dequantized(weight, torch.float16), dequantize(weight).half())


@pytest.mark.parametrize("tokens", [3, 20])
def test_big_batches_are_multiplied_with_the_dequantized_weight(device, monkeypatch, tokens):
    monkeypatch.setattr(product, "CROSSOVER_TOKENS", 8)
    case = Case(device, (tokens, 40, 128), 64, symmetric=False)
    dense = F.linear(case.x, dequantize(case.packed).bfloat16(), case.bias)
    out = wna16_triton(case.x, case.packed, case.bias)
    case.assert_matches_definition(out, bias=True)
    calls: list[int] = []
    monkeypatch.setattr(product, "packed_matmul", lambda x, *rest: calls.append(len(x)))
    crossed = wna16_triton(case.x, case.packed, case.bias)
    assert calls == ([] if tokens > 8 else [tokens])
    assert tokens <= 8 or torch.equal(crossed, dense)


@pytest.mark.gpu
@pytest.mark.parametrize("tokens", [1, 8, 16, 33, 128, 300, 1000])
@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize(("rows", "columns"), [(4096, 14336), (6144, 4096)])
def test_real_shapes(device, tokens, bits, rows, columns):
    case = Case(device, (tokens, rows, columns), 128, bits=bits, symmetric=bits == 8)
    case.assert_matches_definition(wna16_triton(case.x, case.packed, case.bias), bias=True)
