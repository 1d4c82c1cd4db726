"""Gated activations in Triton against their definitions in float64."""

import math

import pytest
import torch
from tolerances import assert_close

from llmopt_kernels import gated_activation as kernels
from llmopt_kernels.gated_activation import reference as definition
from llmopt_kernels.gated_activation import triton as fast

DTYPES = [torch.float32, torch.float16, torch.bfloat16]
ACTIVATIONS = ["silu", "gelu_tanh", "gelu"]


def make(rows, features, dtype, device):
    generator = torch.Generator().manual_seed(0)
    return (torch.randn(rows, 2 * features, generator=generator) * 2).to(device, dtype)


def exact(gate_up, activation):
    gate, up = gate_up.double().chunk(2, dim=-1)
    if activation == "silu":
        return gate / (1 + torch.exp(-gate)) * up
    if activation == "gelu":
        return 0.5 * gate * (1 + torch.erf(gate / math.sqrt(2))) * up
    inner = math.sqrt(2 / math.pi) * (gate + 0.044715 * gate**3)
    return 0.5 * gate * (1 + torch.tanh(inner)) * up


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize(("rows", "features"), [(1, 5), (3, 1030)])
def test_gated_activation(rows, features, activation, dtype, device):
    gate_up = make(rows, features, dtype, device)
    out = fast.gated_activation_triton(gate_up, activation)
    assert_close(out, exact(gate_up, activation))


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize(("rows", "features"), [(1, 14336), (2048, 14336), (5, 28672)])
def test_gated_activation_at_real_shapes(rows, features, activation, dtype, device):
    gate_up = make(rows, features, dtype, device)
    out = fast.gated_activation_triton(gate_up, activation)
    assert_close(out, exact(gate_up, activation))


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_large_gates_neither_overflow_nor_leak(activation, device):
    gate_up = torch.tensor([[-200.0, -30.0, 30.0, 200.0, 1, 1, 1, 1]], device=device)
    out = fast.gated_activation_triton(gate_up, activation)
    assert_close(out, torch.tensor([[0.0, 0.0, 30.0, 200.0]]))


def test_rows_of_a_wider_tensor_are_read_in_place(device):
    wide = make(3, 40, torch.float32, device)
    assert_close(fast.gated_activation_triton(wide[:, :26], "silu"), exact(wide[:, :26], "silu"))
    assert fast.gated_activation_triton(wide[:0], "silu").shape == (0, 40)


@pytest.mark.parametrize("form", ["int8", "fp8"])
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_rounding_is_that_of_the_rounded_product(form, activation, dtype, device):
    gate_up = make(4, 75, dtype, device)
    gate_up[1] = 0  # scale 1
    codes, scales = fast.gated_quantize_triton(gate_up, activation, form)
    product = fast.gated_activation_triton(gate_up, activation)
    expected_codes, expected_scales = definition.QUANTIZERS[form](product)
    assert_close(scales, expected_scales)
    assert (codes.float() == expected_codes.float()).float().mean() > 0.97  # beside a tie
    assert scales[1].item() == 1


@pytest.mark.parametrize("form", ["int8", "fp8"])
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_what_runs_on_a_cpu_agrees_with_the_definitions(form, activation):
    gate_up = make(4, 33, torch.float32, "cpu")
    expected_codes, expected_scales = definition.gated_quantize_reference(gate_up, activation, form)
    codes, scales = kernels.gated_quantize(gate_up, activation, form)
    assert_close(scales, expected_scales)
    assert (codes.float() == expected_codes.float()).float().mean() > 0.97  # beside a tie
    assert_close(kernels.gelu_mul(gate_up), exact(gate_up, "gelu"), magnitude=4)
    assert_close(definition.gelu_mul_reference(gate_up), exact(gate_up, "gelu"), magnitude=4)


@pytest.mark.parametrize("features", [700, 2048])
def test_no_configuration_changes_a_result(features, device):
    gate_up = make(3, features, torch.bfloat16, device)
    expected = fast.gated_activation_triton(gate_up, "silu")
    codes, scales = fast.gated_quantize_triton(gate_up, "silu", "int8")
    configs = fast.candidates(features, rounded=False)
    assert {config["BLOCK"] for config in configs} == {256, 512, 1024, 2048, 4096}
    for config in configs:
        found = fast.gated_activation_triton(gate_up, "silu", config=config)
        assert torch.equal(found, expected)
    for config in fast.candidates(features, rounded=True):
        rounded = fast.gated_quantize_triton(gate_up, "silu", "int8", config=config)
        assert torch.equal(rounded[0], codes)
        assert torch.equal(rounded[1], scales)


def test_a_launch_takes_the_configuration_of_its_class(device, monkeypatch):
    asked = []

    def launch_config(kernel, shape_class, default):
        asked.append((kernel, shape_class))
        return default

    monkeypatch.setattr(fast, "launch_config", launch_config)
    gate_up = make(3, 100, torch.float32, device)
    fast.gated_activation_triton(gate_up, "silu")
    fast.gated_activation_triton(gate_up.repeat(100, 1), "silu")
    fast.gated_quantize_triton(gate_up, "silu", "fp8")
    names = ["few_f128", "many_f128", "few_f128_rounded"]
    assert asked == [("gated_activation", name) for name in names]
    given = {"BLOCK": 32, "num_warps": 1}
    assert_close(
        fast.gated_activation_triton(gate_up, "silu", config=given), exact(gate_up, "silu")
    )
    fast.gated_quantize_triton(gate_up, "silu", "fp8", config={"num_warps": 1})
    assert len(asked) == 3, "what is given is taken"


@pytest.mark.parametrize("features", [128, 1000, 14336, 28672, 65536])
@pytest.mark.parametrize("rounded", [False, True])
def test_the_default_is_among_the_candidates(features, rounded):
    default = fast.default_config(features, rounded=rounded)
    assert default in fast.candidates(features, rounded=rounded)
