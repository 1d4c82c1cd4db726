import pytest
import torch

from llmopt.formats.quantized import QuantizedWeight, QuantSpec
from llmopt.formats.scales import round_scales
from llmopt.layers.linear import make_linear

CPU = torch.device("cpu")


def quantized(
    rows: int, columns: int, spec: QuantSpec, seed: int, g_idx: torch.Tensor | None = None
) -> QuantizedWeight:
    generator = torch.Generator().manual_seed(seed)
    shape = (rows, spec.num_groups(columns))
    zeros = torch.randint(0, spec.levels, shape, generator=generator, dtype=torch.uint8)
    return QuantizedWeight(
        torch.randint(0, spec.levels, (rows, columns), generator=generator, dtype=torch.uint8),
        round_scales(torch.rand(shape, generator=generator) * 0.1 + 0.01),
        None if spec.symmetric else zeros,
        g_idx,
        spec,
    )


@pytest.mark.parametrize(
    ("spec", "kernel"),
    [
        (QuantSpec(4, 32), "int4pack"),
        (QuantSpec(4, 96), "int4pack"),
        (QuantSpec(4, 32, symmetric=False), "int4pack"),
        (QuantSpec(4, None), "int4pack"),
        (QuantSpec(8, 32), "int4pack x 2"),
        (QuantSpec(8, None), "int8pack"),
        (QuantSpec(8, 32, symmetric=False), "dequantized w8"),
        (QuantSpec(4, 48), "dequantized w4"),
        (QuantSpec(3, 32), "dequantized w3"),
    ],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_every_scheme_multiplies_by_the_dequantized_weight(spec, kernel, dtype):
    parts = [quantized(rows, 192, spec, rows) for rows in (32, 16)]
    biases = [torch.randn(32), None]
    linear = make_linear(parts, biases, dtype=dtype, device=CPU, activations="bf16")
    x = torch.randn(5, 192, generator=torch.Generator().manual_seed(9)).to(dtype)
    dense = torch.cat([p.dequantize() for p in parts]).double()
    bias = torch.cat([biases[0], torch.zeros(16)]).double()
    expected = x.double() @ dense.T + bias
    error = (linear(x).double() - expected).norm() / expected.norm()
    assert error < (1e-6 if dtype == torch.float32 else 6e-3)
    assert linear.kernel == (kernel if dtype == torch.bfloat16 else f"dequantized w{spec.bits}")
    assert (linear.in_features, linear.out_features) == (192, 48)


@pytest.mark.parametrize("bits", [4, 8])
def test_activation_order_gathers_the_inputs(bits):
    shuffled = (torch.randperm(64, generator=torch.Generator().manual_seed(3)) // 32).int()
    weight = quantized(32, 64, QuantSpec(bits, 32), 0, shuffled)
    linear = make_linear([weight], [None], dtype=torch.bfloat16, device=CPU, activations="bf16")
    x = torch.randn(3, 64).to(torch.bfloat16)
    expected = x.double() @ weight.dequantize().double().T
    assert linear.kernel.startswith("int4pack")
    assert (linear(x).double() - expected).norm() / expected.norm() < 6e-3


def test_matrices_that_cannot_be_stacked_are_computed_in_turn():
    parts = [torch.randn(16, 64), quantized(16, 64, QuantSpec(4, 32), 1)]
    linear = make_linear(parts, [None, None], dtype=torch.bfloat16, device=CPU, activations="bf16")
    x = torch.randn(2, 64).to(torch.bfloat16)
    dense = torch.cat([parts[0], parts[1].dequantize()]).double()
    assert linear.kernel in ("dense + int4pack", "native bf16 + int4pack")
    expected = x.double() @ dense.T
    assert (linear(x).double() - expected).norm() / expected.norm() < 6e-3


def test_weight_bytes_are_what_is_read():
    four_bit = make_linear(
        [quantized(32, 128, QuantSpec(4, 64), 0)],
        [None],
        dtype=torch.bfloat16,
        device=CPU,
        activations="bf16",
    )
    assert four_bit.weight_bytes == 32 * 128 // 2 + 32 * 2 * 2 * 2  # a bf16 scale and offset
    dense = make_linear([torch.zeros(32, 128)], [None], dtype=torch.bfloat16, device=CPU)
    assert dense.weight_bytes == 32 * 128 * 2


def test_a_torch_without_the_kernels_multiplies_by_the_dequantized_weight(monkeypatch):
    monkeypatch.setattr("llmopt.layers.linear.kernels_run", lambda: False)
    weight = quantized(32, 64, QuantSpec(4, 32), 0)
    linear = make_linear([weight], [None], dtype=torch.bfloat16, device=CPU, activations="bf16")
    x = torch.randn(3, 64).to(torch.bfloat16)
    expected = x.double() @ weight.dequantize().double().T
    assert linear.kernel == "dequantized w4"
    assert (linear(x).double() - expected).norm() / expected.norm() < 6e-3
