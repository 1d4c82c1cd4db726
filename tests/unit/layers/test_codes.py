"""Stored weights as codes: the same numbers, bit for bit."""

import pytest
import torch

from llmopt.formats.codebook import CodebookWeight, NestedAbsmax
from llmopt.formats.fp8 import Fp8Weight
from llmopt.formats.gguf_blocks import GGML_TYPES, GgufWeight
from llmopt.formats.gguf_layouts import LAYOUTS, BlockFields
from llmopt.formats.quantized import QuantizedWeight, QuantSpec
from llmopt.layers.codes import CodedWeight, coded_weight, has_codes, stack_coded
from llmopt_kernels.matmul.packed import can_pack, dequantize, pack


def random_bytes(high: int, *shape: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, high, shape, generator=generator, dtype=torch.uint8)


def gguf_weight(name: str, rows: int, columns: int, seed: int = 0) -> GgufWeight:
    """Random blocks of a type with sensible scales."""
    layout = LAYOUTS[name]
    generator = torch.Generator().manual_seed(seed)
    count = rows * columns // layout.elements

    def half(*shape: int) -> torch.Tensor:
        return (torch.rand(shape, generator=generator) * 0.1 - 0.03).half()

    sub_scales = sub_offsets = None
    if layout.sub is not None:
        low, high = layout.sub.scale_range
        shape = (count, layout.sub.num_sub_blocks)
        sub_scales = torch.randint(low, high + 1, shape, generator=generator, dtype=torch.int16)
        if layout.sub.max_offset is not None:
            most = layout.sub.max_offset + 1
            sub_offsets = torch.randint(0, most, shape, generator=generator, dtype=torch.int16)
    fields = BlockFields(
        random_bytes(1 << layout.code_bits, count, layout.elements, seed=seed),
        half(count),
        half(count) if layout.has_offset else None,
        sub_scales,
        sub_offsets,
    )
    blocks = layout.pack(fields).view(rows, -1)
    return GgufWeight(blocks, GGML_TYPES[name], (rows, columns))


def uniform(spec: QuantSpec, rows: int = 6, g_idx: torch.Tensor | None = None) -> QuantizedWeight:
    shape = rows, spec.num_groups(64)
    return QuantizedWeight(
        random_bytes(spec.levels, rows, 64, seed=rows),
        torch.rand(shape, generator=torch.Generator().manual_seed(rows)),
        None if spec.symmetric else random_bytes(spec.levels, *shape),
        g_idx,
        spec,
    )


def codebook_weight(nested: bool, columns: int = 64) -> CodebookWeight:
    count = 4 * columns // 64 + (4 * columns % 64 > 0)
    generator = torch.Generator().manual_seed(0)
    absmax: torch.Tensor | NestedAbsmax = torch.rand(count, generator=generator)
    if nested:
        table = torch.linspace(-1, 1, 256)
        absmax = NestedAbsmax(random_bytes(256, count), torch.rand(1), table, 0.5, 256)
    return CodebookWeight(random_bytes(16, 4, columns), absmax, "nf4")


def values(weight: CodedWeight) -> torch.Tensor:
    """What the kernels' layout of it means, float32 [O, K]."""
    return dequantize(
        pack(
            weight.codes,
            weight.scales,
            bits=weight.whole_bits,
            dtype=torch.bfloat16,
            zeros=weight.zeros,
            offsets=weight.offsets,
            table=weight.table,
        )
    )


@pytest.mark.parametrize("name", LAYOUTS)
def test_every_type_of_ggml(name):
    stored = gguf_weight(name, 6, 512)
    coded = coded_weight(stored)
    assert torch.equal(values(coded), stored.dequantize())
    assert coded.bits == LAYOUTS[name].code_bits
    assert can_pack(512, coded.group_size)
    assert coded.label == name


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize(("bits", "group_size"), [(2, 16), (3, 32), (4, 64), (4, None), (8, 32)])
def test_uniform_groups(bits, group_size, symmetric):
    stored = uniform(QuantSpec(bits, group_size, symmetric))
    coded = coded_weight(stored)
    assert torch.equal(values(coded), stored.dequantize())
    assert coded.label == f"w{bits}a16"


def test_activation_order_puts_groups_together():
    g_idx = torch.randperm(64, generator=torch.Generator().manual_seed(0)).int() // 32
    stored = uniform(QuantSpec(4, 32), g_idx=g_idx)
    coded = coded_weight(stored)
    assert torch.equal(values(coded), stored.dequantize()[:, coded.order])


@pytest.mark.parametrize("nested", [False, True])
def test_codebooks(nested):
    stored = codebook_weight(nested)
    assert torch.equal(values(coded_weight(stored)), stored.dequantize())


def test_what_has_no_groups_of_columns_is_not_taken():
    assert coded_weight(codebook_weight(False, columns=96)) is None
    plain = GgufWeight(torch.zeros(2, 64, dtype=torch.uint8), GGML_TYPES["f16"], (2, 32))
    assert coded_weight(plain) is None
    fp8 = Fp8Weight(torch.zeros(2, 2).to(torch.float8_e4m3fn), torch.ones(2, 1))
    assert coded_weight(fp8) is None
    assert not has_codes(fp8)
    assert has_codes(plain)


def test_matrices_of_one_kind_are_stacked():
    for parts in (
        [gguf_weight("q4_k", rows, 256, rows) for rows in (2, 4)],
        [uniform(QuantSpec(4, 32, symmetric=False), rows) for rows in (2, 3)],
        [gguf_weight("iq4_nl", rows, 64) for rows in (2, 3)],
    ):
        stacked = stack_coded([coded_weight(part) for part in parts])
        expected = torch.cat([part.dequantize() for part in parts])
        assert torch.equal(values(stacked), expected)


def test_matrices_that_differ_are_not():
    order = torch.arange(63, -1, -1).int() // 32
    four = coded_weight(uniform(QuantSpec(4, 32)))
    for other in (
        uniform(QuantSpec(8, 32)),
        uniform(QuantSpec(4, 16)),
        uniform(QuantSpec(4, 32, symmetric=False)),
        uniform(QuantSpec(4, 32), g_idx=order),
        gguf_weight("q4_0", 2, 64),
        gguf_weight("q4_1", 2, 64),
    ):
        assert stack_coded([four, coded_weight(other)]) is None
    assert stack_coded([four, four]) is not None
