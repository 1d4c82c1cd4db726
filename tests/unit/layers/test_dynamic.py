import pytest
import torch

from llmopt.formats.dynamic import DynamicWeight
from llmopt.formats.fp8 import Fp8Spec, Fp8Weight
from llmopt.formats.quantized import QuantizedWeight, QuantSpec
from llmopt.layers.linear import Linear, make_linear
from llmopt.quantize.fp8 import quantize_fp8
from llmopt.quantize.rtn import quantize_rtn
from llmopt_kernels.fp8 import reference as fp8
from llmopt_kernels.w8a8 import reference as w8a8
from llmopt_kernels.w8a8.torch_int_mm import why_not_on_cpu

CPU = torch.device("cpu")
TOLERANCE = {torch.float32: 1e-6, torch.bfloat16: 8e-3, torch.float16: 2e-3}
INT8 = "w8a8 int_mm" if why_not_on_cpu() is None else f"w8a8 simulated: {why_not_on_cpu()}"


def randn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def int8_weight(rows: int, seed: int = 0, spec: QuantSpec | None = None) -> DynamicWeight:
    quantized = quantize_rtn(randn(rows, 64, seed=seed), spec or QuantSpec(8, None))
    return DynamicWeight(quantized, "int8")


def fp8_weight(rows: int, seed: int = 0) -> DynamicWeight:
    return DynamicWeight(quantize_fp8(randn(rows, 64, seed=seed)), "fp8")


def rounded(x: torch.Tensor, weight: DynamicWeight) -> torch.Tensor:
    """x as the layer sees it, in float64."""
    quantize = w8a8.quantize_tokens if weight.activations == "int8" else fp8.quantize_tokens
    values, scales = quantize(x)
    return values.double() * scales.double()


def assert_computes(
    linear: Linear, weights: list[DynamicWeight], bias: torch.Tensor, dtype: torch.dtype
) -> None:
    x = randn(5, 64, seed=9).to(dtype)
    parts = [rounded(x, w) @ w.dequantize().double().T for w in weights]
    expected = torch.cat(parts, dim=1) + bias.to(dtype).double()
    error = (linear(x).double() - expected).norm() / expected.norm()
    assert linear(x).dtype == dtype
    assert error < TOLERANCE[dtype]


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize(
    ("make", "kernel"),
    [(int8_weight, INT8), (fp8_weight, "fp8 simulated: only CUDA devices have an FP8 product")],
)
def test_stacked_layers_round_their_inputs_and_multiply(make, kernel, dtype):
    parts, biases = [make(32, 1), make(16, 2)], [randn(32), None]
    linear = make_linear(parts, biases, dtype=dtype, device=CPU)
    assert linear.kernel == kernel
    assert (linear.in_features, linear.out_features) == (64, 48)
    assert_computes(linear, parts, torch.cat([biases[0], torch.zeros(16)]), dtype)


@pytest.mark.parametrize("dtype", TOLERANCE)
def test_int8_without_an_integer_product_is_simulated_and_says_why(monkeypatch, dtype):
    monkeypatch.setattr("llmopt_kernels.w8a8.torch_int_mm.why_not_on_cpu", lambda: "for a test")
    weight = int8_weight(32)
    linear = make_linear([weight], [None], dtype=dtype, device=CPU)
    assert linear.kernel == "w8a8 simulated: for a test"
    assert_computes(linear, [weight], torch.zeros(32), dtype)


@pytest.mark.parametrize("activations", ["int8", "fp8"])
@pytest.mark.parametrize("spec", [QuantSpec(4, 32), QuantSpec(8, None, symmetric=False)])
def test_other_integer_weights_are_simulated(spec, activations):
    quantized = quantize_rtn(randn(32, 64), spec)
    weight = DynamicWeight(quantized, activations)
    linear = make_linear([weight], [None], dtype=torch.float32, device=CPU)
    assert linear.kernel.startswith(f"{weight.label} simulated: only symmetric 8-bit rows")
    assert_computes(linear, [weight], torch.zeros(32), torch.float32)


def test_fp8_weights_with_int8_inputs_are_simulated():
    weight = DynamicWeight(quantize_fp8(randn(16, 64)), "int8")
    linear = make_linear([weight], [None], dtype=torch.float32, device=CPU)
    assert "FP8 inputs only" in linear.kernel
    assert_computes(linear, [weight], torch.zeros(16), torch.float32)


def test_layers_that_round_differently_are_computed_in_turn():
    parts = [int8_weight(16, 1), fp8_weight(16, 2)]
    linear = make_linear(parts, [None, None], dtype=torch.float32, device=CPU)
    assert_computes(linear, parts, torch.zeros(32), torch.float32)
    assert linear.kernel.startswith(f"{INT8} + fp8 simulated")


def test_weight_bytes_are_what_is_read():
    simulated = make_linear([fp8_weight(16)], [None], dtype=torch.bfloat16, device=CPU)
    assert simulated.weight_bytes == 16 * 64 * 2 + 16 * 4
    if why_not_on_cpu() is None:
        integers = make_linear([int8_weight(16)], [None], dtype=torch.bfloat16, device=CPU)
        assert integers.weight_bytes == 16 * 64 + 16 * 4


@pytest.mark.parametrize("per_row", [True, False])
def test_fp8_weights_alone_are_dequantized_and_stacked(per_row):
    values = randn(16, 64).to(torch.float8_e4m3fn)
    parts = [
        Fp8Weight(values, torch.rand(16 if per_row else 1, 1), Fp8Spec(per_row)) for _ in range(2)
    ]
    linear = make_linear(parts, [None, None], dtype=torch.float32, device=CPU)
    x = randn(3, 64, seed=1)
    expected = x.double() @ torch.cat([p.dequantize() for p in parts]).double().T
    assert linear.kernel == "dequantized fp8"
    assert (linear(x).double() - expected).norm() / expected.norm() < 1e-6


def test_zero_points_and_float32_scales_do_not_confuse_the_integer_product():
    spec = QuantSpec(8, None)
    codes = torch.tensor([[0, 255, 128, 1]] * 8, dtype=torch.uint8)
    stored = QuantizedWeight(codes, torch.full((8, 1), 0.1), None, None, spec)
    weight = DynamicWeight(stored, "int8")
    linear = make_linear([weight], [None], dtype=torch.float32, device=CPU)
    out = linear(torch.tensor([[1.0, 0.0, 0.0, 0.0], [0.0, 1.0, 0.0, 0.0]]))
    assert out[:, 0].tolist() == pytest.approx([-12.8, 12.7])
