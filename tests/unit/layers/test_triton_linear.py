"""The choice of layers for a GPU; their products are computed by torch here."""

import pytest
import torch

from llmopt.formats.dynamic import DynamicWeight
from llmopt.formats.fp8 import Fp8Weight
from llmopt.formats.gguf_blocks import GgufWeight
from llmopt.formats.quantized import QuantizedWeight, QuantSpec
from llmopt.layers import linear as linear_module
from llmopt.layers.linear import Linear, Weight, make_linear
from llmopt.layers.triton_linear import takes_packed
from llmopt.quantize.fp8 import quantize_fp8
from llmopt.quantize.gguf_encode import encode
from llmopt.quantize.rtn import quantize_rtn

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def _gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(linear_module, "takes_packed", lambda dtype, _: dtype.itemsize == 2)


def randn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def uniform(rows: int, spec: QuantSpec) -> QuantizedWeight:
    return quantize_rtn(randn(rows, 256, seed=rows), spec)


def gguf(rows: int, name: str) -> GgufWeight:
    return encode(randn(rows, 256, seed=rows), name)


def assert_multiplies(linear: Linear, parts: list[Weight], bias: torch.Tensor) -> None:
    x = randn(3, 256, seed=5).bfloat16()
    dense = [p if isinstance(p, torch.Tensor) else p.dequantize() for p in parts]
    expected = x.double() @ torch.cat(dense).double().T + bias.double()
    error = (linear(x).double() - expected).norm() / expected.norm()
    assert error < 6e-3
    assert linear.out_features == len(expected[0])


@pytest.mark.parametrize(
    ("make", "kernel"),
    [
        (lambda rows: uniform(rows, QuantSpec(4, 64)), "triton w4a16"),
        (lambda rows: uniform(rows, QuantSpec(4, 32, symmetric=False)), "triton w4a16"),
        (lambda rows: uniform(rows, QuantSpec(3, 32)), "triton w3a16"),
        (lambda rows: uniform(rows, QuantSpec(8, None)), "triton w8a16"),
        (lambda rows: uniform(rows, QuantSpec(4, 8)), "dequantized w4"),
        (lambda rows: gguf(rows, "q4_k"), "triton q4_k"),
        (lambda rows: gguf(rows, "q8_0"), "triton q8_0"),
        (lambda rows: gguf(rows, "iq4_nl"), "triton iq4_nl"),
        (lambda rows: quantize_fp8(randn(rows, 256)), "dequantized fp8"),
    ],
)
def test_the_kernel_of_each_scheme(make, kernel):
    parts = [make(32), make(16)]
    bias = randn(32, seed=7)
    linear = make_linear(parts, [bias, None], dtype=torch.bfloat16, device=CPU)
    assert linear.kernel == kernel
    assert_multiplies(linear, parts, torch.cat([bias, torch.zeros(16)]))


def test_parts_of_different_types_are_computed_in_turn(dense_kernel):
    parts = [gguf(32, "q4_k"), gguf(16, "q6_k"), randn(8, 256)]
    linear = make_linear(parts, [None] * 3, dtype=torch.bfloat16, device=CPU)
    assert linear.kernel == f"triton q4_k + triton q6_k + {dense_kernel}"
    assert_multiplies(linear, parts, torch.zeros(56))


def test_activation_order_gathers_the_inputs():
    g_idx = torch.randperm(256, generator=torch.Generator().manual_seed(0)).int() // 64
    plain = uniform(32, QuantSpec(4, 64))
    weight = QuantizedWeight(plain.codes, plain.scales, None, g_idx, plain.spec)
    linear = make_linear([weight], [None], dtype=torch.bfloat16, device=CPU)
    assert linear.kernel == "triton w4a16"
    assert_multiplies(linear, [weight], torch.zeros(32))


def test_other_dtypes_are_dequantized():
    weight = uniform(32, QuantSpec(4, 64))
    linear = make_linear([weight], [None], dtype=torch.float32, device=CPU)
    assert linear.kernel == "dequantized w4"
    assert not takes_packed(torch.bfloat16, CPU)


def test_weight_bytes_are_those_that_the_kernel_reads():
    linear = make_linear([uniform(128, QuantSpec(4, 64))], [None], dtype=torch.bfloat16, device=CPU)
    assert linear.weight_bytes == 128 * 256 // 2 + 4 * 128 * 2


@pytest.mark.parametrize("activations", ["int8", "fp8"])
def test_dynamic_layers(monkeypatch, activations):
    pytest.importorskip("triton")
    monkeypatch.setattr("llmopt.layers.dynamic.uses_triton", lambda _: True)
    monkeypatch.setattr("torch.cuda.get_device_capability", lambda _: (9, 0))
    stored: QuantizedWeight | Fp8Weight = (
        uniform(30, QuantSpec(8, None)) if activations == "int8" else quantize_fp8(randn(30, 256))
    )
    weight = DynamicWeight(stored, activations)
    linear = make_linear([weight], [None], dtype=torch.float16, device=CPU)
    assert linear.kernel == f"triton {weight.label}"
    assert linear.weight_bytes == 30 * 256 + 30 * 4
    assert (linear.in_features, linear.out_features) == (256, 30)
    monkeypatch.setattr("torch.cuda.get_device_capability", lambda _: (8, 0))
    if activations == "fp8":
        older = make_linear([weight], [None], dtype=torch.float16, device=CPU)
        assert older.kernel.startswith("fp8 simulated")
