import pytest
import torch

from llmopt.formats.dynamic import DynamicSpec, DynamicWeight, stack_dynamic
from llmopt.formats.fp8 import Fp8Spec, Fp8Weight, concatenate_fp8
from llmopt.formats.quantized import QuantizedWeight, QuantSpec

ROWS = QuantSpec(8, None)


def integers(rows: int, spec: QuantSpec = ROWS, seed: int = 0) -> QuantizedWeight:
    generator = torch.Generator().manual_seed(seed)
    return QuantizedWeight(
        torch.randint(0, spec.levels, (rows, 32), generator=generator, dtype=torch.uint8),
        torch.rand(rows, spec.num_groups(32), generator=generator),
        None,
        None,
        spec,
    )


def floats(rows: int, *, per_row: bool = True, seed: int = 0) -> Fp8Weight:
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(rows, 32, generator=generator).to(torch.float8_e4m3fn)
    scales = torch.rand(rows if per_row else 1, 1, generator=generator)
    return Fp8Weight(values, scales, Fp8Spec(per_row))


@pytest.mark.parametrize("per_row", [True, False])
def test_an_fp8_weight_is_value_times_scale(per_row):
    weight = floats(4, per_row=per_row)
    dense = weight.dequantize()
    for row in range(4):
        scale = weight.scales[row if per_row else 0, 0]
        for column in range(32):
            assert dense[row, column] == weight.values[row, column].float() * scale
    assert weight.shape == (4, 32)
    assert torch.equal(weight.to(torch.device("cpu")).dequantize(torch.bfloat16), dense.bfloat16())


def test_stacked_fp8_matrices_keep_their_scales():
    parts = [floats(4), floats(3, per_row=False, seed=1)]
    stacked = concatenate_fp8(parts)
    assert torch.equal(stacked.dequantize(), torch.cat([p.dequantize() for p in parts]))


@pytest.mark.parametrize("part", [integers(4), floats(4)])
def test_a_dynamic_weight_is_the_weight_in_it(part):
    weight = DynamicWeight(part, "int8")
    assert torch.equal(weight.dequantize(), part.dequantize())
    assert weight.shape == part.shape
    assert weight.spec == DynamicSpec(part.spec, "int8")
    assert weight.to(torch.device("cpu")).activations == "int8"


def test_weights_of_one_kind_stack_and_others_do_not():
    one, other = integers(4), integers(8, seed=1)
    stacked = stack_dynamic([DynamicWeight(one, "int8"), DynamicWeight(other, "int8")])
    assert stacked is not None
    assert torch.equal(stacked.dequantize(), torch.cat([one.dequantize(), other.dequantize()]))
    fp8 = stack_dynamic([DynamicWeight(floats(4), "fp8"), DynamicWeight(floats(4), "fp8")])
    assert fp8 is not None
    assert fp8.shape == (8, 32)
    apart = [
        [DynamicWeight(one, "int8"), DynamicWeight(other, "fp8")],
        [DynamicWeight(one, "int8"), DynamicWeight(floats(4), "int8")],
        [DynamicWeight(one, "int8"), DynamicWeight(integers(4, QuantSpec(4, 16)), "int8")],
    ]
    assert [stack_dynamic(weights) for weights in apart] == [None, None, None]


@pytest.mark.parametrize(
    ("spec", "name"),
    [
        (DynamicSpec(ROWS, "int8"), "w8a8"),
        (DynamicSpec(QuantSpec(4, 64, symmetric=False), "int8"), "w4g64-asyma8"),
        (DynamicSpec(QuantSpec(4, 64), "fp8"), "w4g64afp8"),
        (DynamicSpec(Fp8Spec(), "fp8"), "fp8"),
    ],
)
def test_schemes_are_named_after_what_they_hold(spec, name):
    assert spec.name == name
    assert spec.label("rtn") == f"rtn-{name}"
    assert spec.label(name) == name
    assert Fp8Spec().label("rtn") == "rtn-fp8a16"
