"""What the interpreter computes is what the hardware computes; without this, tests mean little."""

import pytest
import torch
import triton
import triton.language as tl


@triton.jit
def convert(source, target, N: tl.constexpr):
    index = tl.arange(0, N)
    tl.store(target + index, tl.load(source + index).to(target.dtype.element_ty))


@triton.jit
def multiply(a, b, out, N: tl.constexpr):
    row = tl.arange(0, N)[:, None]
    column = tl.arange(0, N)[None, :]
    product = tl.dot(tl.load(a + row * N + column), tl.load(b + row * N + column))
    tl.store(out + row * N + column, product)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float8_e4m3fn])
def test_conversions_round_to_nearest_even(device, dtype):
    grid = torch.arange(-512, 512) / 64  # ties of e4m3, too
    values = torch.cat([grid, torch.randn(1024, generator=torch.Generator().manual_seed(0)) * 30])
    out = torch.zeros(2048, device=device, dtype=dtype)
    convert[(1,)](values.to(device), out, 2048)
    assert torch.equal(out.cpu().float(), values.to(dtype).float())
    back = torch.zeros(2048, device=device)
    convert[(1,)](out, back, 2048)
    assert torch.equal(back, out.float())


def test_fp8_saturates(device):
    out = torch.zeros(2, device=device, dtype=torch.float8_e4m3fn)
    convert[(1,)](torch.tensor([1e9, -470.0], device=device), out, 2)
    assert out.cpu().float().tolist() == [448, -448]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_matrix_products(device, dtype):
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.randn(16, 16, generator=generator).to(device, dtype) for _ in range(2))
    out = torch.zeros(16, 16, device=device)
    multiply[(1,)](a, b, out, 16)
    assert (out - a.float() @ b.float()).abs().max() < 1e-5
