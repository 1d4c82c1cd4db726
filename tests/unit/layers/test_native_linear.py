"""Layers on the compiled CPU kernels, for every way in which weights are stored."""

from dataclasses import replace

import pytest
import torch

from llmopt.formats.codebook import CodebookKind, CodebookWeight
from llmopt.formats.gguf_blocks import GGML_TYPES, GgufWeight
from llmopt.formats.quantized import QuantizedWeight, QuantSpec, StoredWeight
from llmopt.layers.linear import DenseLinear, Linear, Weight, make_linear
from llmopt.layers.native_codes import native_codes, whole_levels
from llmopt.layers.native_linear import (
    MAX_ROW_TOKENS,
    NativeLinear,
    input_parts,
    library_for,
)
from llmopt_kernels.wna8.reference import wna8_reference

CPU = torch.device("cpu")
BLOCK_TYPES = [name for name, kind in GGML_TYPES.items() if kind.layout is not None]


@pytest.fixture(autouse=True)
def _needs_the_library():
    if library_for(torch.bfloat16, CPU) is None:
        pytest.skip("the C++ kernels are off or cannot be compiled here")


def native(weights: list[Weight], biases: list[torch.Tensor | None] | None = None) -> Linear:
    return make_linear(
        weights,
        biases or [None] * len(weights),
        dtype=torch.bfloat16,
        device=CPU,
        activations="int8",
    )


def uniform(rows: int, columns: int, spec: QuantSpec, seed: int = 0) -> QuantizedWeight:
    generator = torch.Generator().manual_seed(seed)
    shape = (rows, spec.num_groups(columns))
    zeros = torch.randint(0, spec.levels, shape, generator=generator, dtype=torch.uint8)
    codes = torch.randint(0, spec.levels, (rows, columns), generator=generator, dtype=torch.uint8)
    scales = (torch.rand(shape, generator=generator) * 0.1 + 0.01).half()
    return QuantizedWeight(codes, scales, None if spec.symmetric else zeros, None, spec)


def ggml(name: str, rows: int, columns: int, seed: int = 0) -> GgufWeight:
    kind, generator = GGML_TYPES[name], torch.Generator().manual_seed(seed)
    layout = kind.layout
    assert layout is not None
    shape = (rows, kind.row_bytes(columns))
    blocks = torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)
    fields = layout.unpack(blocks.reshape(-1, layout.num_bytes))
    scale = (torch.rand(fields.scale.shape, generator=generator) * 0.02 + 0.001).half()
    offset = None if fields.offset is None else scale.flip(0)
    blocks = layout.pack(replace(fields, scale=scale, offset=offset))
    return GgufWeight(blocks.reshape(shape), kind, (rows, columns))


def relative_error(out: torch.Tensor, expected: torch.Tensor) -> float:
    return ((out.double() - expected).norm() / expected.norm()).item()


def held_against_reference(linear: Linear, dense: torch.Tensor, tolerance: float = 1e-6) -> None:
    """With the rounding of inputs in the reference, only that of float32 sums remains."""
    assert isinstance(linear, NativeLinear)
    x = torch.randn(5, dense.shape[1], generator=torch.Generator().manual_seed(9))
    expected = wna8_reference(x, dense, linear.weight.struct.step)
    assert relative_error(linear(x), expected) < tolerance
    rounded = linear(x.to(torch.bfloat16))
    assert rounded.dtype == torch.bfloat16
    assert relative_error(rounded, x.double() @ dense.double().T) < 2e-2


@pytest.mark.parametrize(
    "spec",
    [
        QuantSpec(bits, group, symmetric)
        for bits in (2, 3, 4, 8)
        for group in (16, 32, 48, 64, None)
        for symmetric in (True, False)
    ],
    ids=lambda spec: spec.label("rtn"),
)
def test_uniform_weights(spec):
    weight = uniform(37, 192, spec)
    linear = native([weight])
    held_against_reference(linear, weight.dequantize())
    assert linear.kernel == f"native w{spec.bits}a8"


@pytest.mark.parametrize("name", BLOCK_TYPES)
def test_ggml_blocks(name):
    weight = ggml(name, 40, 512)
    linear = native([weight])
    held_against_reference(linear, weight.dequantize())
    assert linear.kernel == f"native {name}a8"


@pytest.mark.parametrize("name", ["q4_0", "q4_1", "q8_0", "q4_k", "iq4_nl", "iq4_xs"])
def test_a_product_reads_hardly_more_bytes_than_the_blocks(name):
    weight = ggml(name, 64, 512)
    assert 1.0 <= native([weight]).weight_bytes / weight.blocks.nbytes < 1.04


@pytest.mark.parametrize("kind", ["nf4", "fp4"])
def test_codebooks_are_rounded_to_eight_bits(kind: CodebookKind):
    generator = torch.Generator().manual_seed(0)
    codes = torch.randint(0, 16, (32, 128), generator=generator, dtype=torch.uint8)
    weight = CodebookWeight(codes, torch.rand(64, generator=generator) + 0.1, kind)
    dense = weight.dequantize()
    held_against_reference(native([weight]), dense, tolerance=4e-3)
    stored = native_codes(weight)
    assert stored is not None
    assert stored.table is not None
    levels = stored.table[stored.codes.int()]
    approximate = levels * stored.scales.values.repeat_interleave(64, dim=1)
    assert relative_error(approximate, dense) < 4e-3  # NF4 itself is off by about 0.09


def test_whole_levels_are_exact_where_they_can_be():
    table = torch.tensor([-1.0, -0.5, 0.0, 0.25, 1.0] + [0.0] * 11)
    scale, levels = whole_levels(table)
    assert torch.allclose(levels * scale, table, rtol=1e-6, atol=0)
    assert levels.abs().max() <= 127
    assert torch.equal(levels, levels.round())


def test_activation_order_gathers_the_inputs():
    shuffled = (torch.randperm(64, generator=torch.Generator().manual_seed(3)) // 32).int()
    weight = replace(uniform(32, 64, QuantSpec(4, 32)), g_idx=shuffled)
    linear = native([weight])
    assert isinstance(linear, NativeLinear)
    x = torch.randn(3, 64)
    expected = wna8_reference(
        x[:, weight.column_order()], weight.dequantize()[:, weight.column_order()], 32
    )
    assert relative_error(linear(x), expected) < 1e-6


@pytest.mark.parametrize(
    "make",
    [
        lambda rows, seed: uniform(rows, 256, QuantSpec(4, 32, symmetric=False), seed),
        lambda rows, seed: ggml("q4_k", rows, 256, seed),
        lambda rows, seed: ggml("q4_1", rows, 256, seed),
        lambda rows, seed: ggml("q6_k", rows, 256, seed),
    ],
)
def test_matrices_that_share_their_input_become_one(make):
    parts = [make(rows, rows) for rows in (32, 5, 11)]
    biases = [torch.randn(32), None, torch.randn(11)]
    linear = native(parts, biases)
    assert isinstance(linear, NativeLinear)
    assert (linear.in_features, linear.out_features) == (256, 48)
    x = torch.randn(4, 256)
    dense = torch.cat([part.dequantize() for part in parts])
    bias = torch.cat([biases[0], torch.zeros(5), biases[2]]).to(torch.bfloat16).double()
    assert relative_error(linear(x), wna8_reference(x, dense, linear.weight.struct.step) + bias) < (
        1e-6
    )


def test_matrices_of_different_types_are_computed_in_turn():
    parts: list[StoredWeight] = [ggml("q4_k", 32, 256), ggml("q6_k", 16, 256)]
    linear = native(parts)
    assert linear.kernel == "native q4_ka8 + native q6_ka8"
    x = torch.randn(2, 256).to(torch.bfloat16)
    dense = torch.cat([part.dequantize() for part in parts]).double()
    assert relative_error(linear(x), x.double() @ dense.T) < 2e-2


def test_groups_that_do_not_fit_are_left_to_torch():
    assert native_codes(uniform(16, 96, QuantSpec(4, 24))) is None
    assert native([uniform(16, 96, QuantSpec(4, 24))]).kernel == "dequantized w4"


def test_the_accurate_path_can_be_chosen(monkeypatch):
    weight = uniform(32, 64, QuantSpec(4, 32))
    chosen = make_linear([weight], [None], dtype=torch.bfloat16, device=CPU, activations="bf16")
    assert chosen.kernel in ("int4pack", "dequantized w4")
    assert make_linear([weight], [None], dtype=torch.float32, device=CPU).kernel == "dequantized w4"
    monkeypatch.setenv("LLMOPT_NATIVE", "0")
    assert native([weight]).kernel == chosen.kernel
    assert native([torch.randn(32, 64)]).kernel == "dense"


def test_without_a_home_torch_s_kernels_are_used(capsys, monkeypatch):
    monkeypatch.setenv("LLMOPT_KERNELS", "~nobody-has-this-name/kernels")
    for _ in range(2):
        assert library_for(torch.bfloat16, CPU) is None
    (line,) = capsys.readouterr().err.splitlines()
    assert "no compiled CPU kernels" in line
    assert "LLMOPT_CACHE" in line
    monkeypatch.setenv("LLMOPT_NATIVE", "0")
    monkeypatch.setenv("LLMOPT_KERNELS", "~nobody-has-that-name/kernels")
    assert library_for(torch.bfloat16, CPU) is None
    assert not capsys.readouterr().err


def test_nothing_of_the_original_is_kept():
    weight = uniform(32, 64, QuantSpec(4, 32))
    linear = native([weight])
    assert isinstance(linear, NativeLinear)
    originals = {weight.codes.data_ptr(), weight.scales.data_ptr()}
    assert originals.isdisjoint(tensor.data_ptr() for tensor in linear.weight.tensors.values())
    assert linear.weight_bytes == 32 * 64 // 2 + 32 * 2 * 2


@pytest.mark.parametrize("tokens", [1, 7, MAX_ROW_TOKENS, MAX_ROW_TOKENS + 1])
def test_bfloat16_rows_stay_where_they_are(tokens):
    matrix, bias = torch.randn(37, 64).to(torch.bfloat16), torch.randn(37).to(torch.bfloat16)
    linear = native([matrix], [bias])
    assert isinstance(linear, DenseLinear)
    assert linear.kernel == "native bf16"
    assert linear.weight.data_ptr() == matrix.data_ptr()
    x = torch.randn(tokens, 64).to(torch.bfloat16)
    expected = x.double() @ matrix.double().T + bias.double()
    assert relative_error(linear(x), expected) < 3e-3


def test_float32_and_odd_rows_are_torch_s():
    assert make_linear([torch.randn(8, 64)], [None], dtype=torch.float32, device=CPU).kernel == (
        "dense"
    )
    assert native([torch.randn(8, 40)]).kernel == "dense"


@pytest.mark.parametrize(
    ("weight", "parts"), [(QuantSpec(4, 32), 1), (QuantSpec(8, 32), 2), (QuantSpec(8, None), 2)]
)
def test_inputs_of_8_bit_weights_keep_more_bits(weight, parts):
    stored = [uniform(32, 64, weight)]
    assert input_parts("auto", stored) == parts
    assert input_parts("int8", stored) == 1
    assert input_parts("int16", stored) == 2
    assert input_parts("bf16", stored) is None
