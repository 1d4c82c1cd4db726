"""Errors are held against llama.cpp's in tests/e2e/test_gguf_types.py."""

import pytest
import torch

from llmopt.errors import QuantizationError
from llmopt.formats.gguf_blocks import GGML_TYPES
from llmopt.quantize.gguf_encode import encode

BLOCK_TYPES = [name for name, found in GGML_TYPES.items() if found.layout is not None]
OFFSET_TYPES = ["q4_1", "q5_1", "q2_k", "q4_k", "q5_k"]


def random_weight(rows: int = 16, columns: int = 512, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return 0.02 * torch.randn(rows, columns, generator=generator)


def error_of(
    weight: torch.Tensor, name: str, importance: torch.Tensor | None = None
) -> torch.Tensor:
    return encode(weight, name, importance).dequantize() - weight


@pytest.mark.parametrize(
    ("name", "most"),
    [
        ("q4_0", 7e-3),
        ("q4_1", 5.5e-3),
        ("q5_0", 1.8e-3),
        ("q5_1", 1.3e-3),
        ("q8_0", 3e-5),
        ("q2_k", 7.5e-2),
        ("q3_k", 2.3e-2),
        ("q4_k", 5.5e-3),
        ("q5_k", 1.4e-3),
        ("q6_k", 3.2e-4),
        ("iq4_nl", 6e-3),
        ("iq4_xs", 6e-3),
        ("f16", 1e-6),
        ("bf16", 4e-6),
        ("f32", 0.0),
    ],
)
def test_the_relative_error_of_normal_weights(name: str, most: float) -> None:
    weight = random_weight()
    assert error_of(weight, name).square().mean() <= most * weight.square().mean()


@pytest.mark.parametrize(("name", "lowest", "highest"), [("q4_0", -8, 7), ("q5_0", -16, 15)])
def test_scales_are_close_to_those_of_an_exhaustive_search(
    name: str, lowest: int, highest: int
) -> None:
    weight = random_weight(columns=32)
    peak = weight.abs().amax(1)
    tried = torch.cat([torch.linspace(s * 0.5, s * 1.3, 2000) for s in (1, -1)])
    scales = (tried[:, None] * peak / -lowest).half().float().unsqueeze(-1)  # [tried, O, 1]
    rounded = torch.round(weight / scales).clamp(lowest, highest) * scales
    best = (rounded - weight).square().sum(-1).amin(0)
    assert error_of(weight, name).square().sum() <= 1.01 * best.sum()


def test_offsets_are_close_to_those_of_an_exhaustive_search() -> None:
    weight = random_weight(rows=8, columns=32)
    low, high = weight.amin(1, keepdim=True), weight.amax(1, keepdim=True)
    steps = torch.linspace(0, 0.35, 36)
    best = torch.full((len(weight),), torch.inf)
    for below in steps:
        for above in steps:
            offset = (low + below * (high - low)).half().float()
            scale = ((high - above * (high - low) - offset) / 15).half().float()
            rounded = torch.round((weight - offset) / scale).clamp(0, 15) * scale + offset
            best = torch.minimum(best, (rounded - weight).square().sum(-1))
    assert error_of(weight, "q4_1").square().sum() <= 1.02 * best.sum()


@pytest.mark.parametrize("name", BLOCK_TYPES)
def test_importance_moves_the_error_to_where_it_costs_less(name: str) -> None:
    weight = random_weight()
    importance = torch.exp(1.5 * torch.randn(512, generator=torch.Generator().manual_seed(1)))
    plain = (error_of(weight, name).square() * importance).sum()
    weighted = (error_of(weight, name, importance).square() * importance).sum()
    assert weighted < 0.95 * plain


@pytest.mark.parametrize("name", BLOCK_TYPES)
def test_equal_importance_is_no_importance(name: str) -> None:
    weight = random_weight()
    expected = encode(weight, name).blocks
    assert torch.equal(encode(weight, name, torch.full((512,), 3.0)).blocks, expected)
    assert torch.equal(encode(weight, name, torch.zeros(512)).blocks, expected)


@pytest.mark.parametrize("name", BLOCK_TYPES)
def test_columns_that_were_never_used_still_hold_their_weights(name: str) -> None:
    weight = random_weight()
    importance = torch.ones(512)
    importance[::2] = 0
    relative = error_of(weight, name, importance).square().mean() / weight.square().mean()
    assert relative < 0.15


@pytest.mark.parametrize("name", BLOCK_TYPES)
@pytest.mark.parametrize("value", [0.0, 1e-38, -0.75, 0.75, 65504.0])
def test_constant_rows(name: str, value: float) -> None:
    weight = torch.full((2, 256), value)
    error = error_of(weight, name).abs().max()
    assert error <= max(1e-7, abs(value) * 2e-3)


@pytest.mark.parametrize("name", BLOCK_TYPES)
def test_one_outlier_in_a_block_of_zeros(name: str) -> None:
    weight = torch.zeros(1, 256)
    weight[0, 77] = -3.0
    one_level = 3 / 113 if name.startswith("iq4") else 0.0  # iq4 types have no level at 0
    assert error_of(weight, name).abs().max() <= one_level + 3e-3


def test_bytes_of_q8_0_can_be_negated() -> None:
    blocks = encode(random_weight(rows=200), "q8_0").blocks.view(-1, 34)
    assert int(blocks[:, 2:].contiguous().view(torch.int8).min()) == -127


@pytest.mark.parametrize("name", BLOCK_TYPES)
def test_rows_do_not_depend_on_each_other_nor_on_anything_else(name: str) -> None:
    weight = random_weight(rows=200)
    state = torch.get_rng_state()
    together = encode(weight, name).blocks
    assert torch.equal(torch.get_rng_state(), state)
    alone = [encode(weight[start:end], name).blocks for start, end in ((0, 101), (101, 200))]
    assert torch.equal(torch.cat(alone), together)


@pytest.mark.parametrize("name", BLOCK_TYPES)
def test_half_precision_weights_are_encoded_from_their_exact_values(name: str) -> None:
    weight = random_weight().bfloat16()
    assert torch.equal(encode(weight, name).blocks, encode(weight.float(), name).blocks)


@pytest.mark.parametrize("name", OFFSET_TYPES)
def test_offsets_follow_shifted_weights(name: str) -> None:
    weight = random_weight() - 0.1  # K-quants subtract their offsets, so they reach down only
    centred = error_of(weight + 0.1, name).square().mean()
    assert error_of(weight, name).square().mean() < 1.6 * centred


def test_bad_input_is_refused_with_the_name() -> None:
    weight = random_weight()
    with pytest.raises(QuantizationError, match=r"'q9_k'.*q4_k"):
        encode(weight, "q9_k")
    with pytest.raises(QuantizationError, match=r"rows of 100 .* 32"):
        encode(weight[:, :100], "q4_0")
    weight[3, 5] = torch.nan
    with pytest.raises(QuantizationError, match=r"blk\.0\.ffn_up"):
        encode(weight, "q4_k", name="blk.0.ffn_up")


@pytest.mark.parametrize("name", ["q4_0", "q4_k", "f16"])
def test_weights_beyond_float16_are_refused(name: str) -> None:
    with pytest.raises(QuantizationError, match=r"1e\+05"):
        encode(torch.full((1, 256), 1e5), name)
    assert encode(torch.full((1, 256), 1e5), "bf16").dequantize()[0, 0] == 99840
