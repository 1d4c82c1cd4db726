"""The types themselves are held against llama.cpp in tests/e2e/test_gguf_types.py."""

import pytest

from llmopt.errors import QuantizationError
from llmopt.formats.gguf_blocks import GGML_TYPES
from llmopt.quantize.gguf_mix import MIXES, find_mix, tensor_type


def type_of(
    mix: str,
    name: str,
    columns: int = 1024,
    *,
    num_layers: int = 32,
    tied: bool = False,
    num_heads: int = 32,
    num_kv_heads: int = 32,
    arch: str = "llama",
    has_importance: bool = False,
) -> str:
    return tensor_type(
        mix,
        name,
        (4096, columns),
        layer=int(name.split(".")[1]) if name.startswith("blk.") else None,
        num_layers=num_layers,
        tied=tied,
        num_heads=num_heads,
        num_kv_heads=num_kv_heads,
        arch=arch,
        has_importance=has_importance,
    )


@pytest.mark.parametrize("part", ["attn_v", "ffn_down"])
def test_q4_k_m_gives_sixteen_of_32_layers_more_bits(part: str) -> None:
    generous = [n for n in range(32) if type_of("q4_k_m", f"blk.{n}.{part}.weight") == "q6_k"]
    assert generous == [0, 1, 2, 3, 6, 9, 12, 15, 18, 21, 24, 27, 28, 29, 30, 31]


@pytest.mark.parametrize(
    ("mix", "columns", "expected"),
    [
        ("q2_k", 576, "q4_0"),
        ("q3_k_m", 576, "q4_0"),
        ("q4_k_m", 576, "q5_0"),
        ("q5_k_m", 576, "q5_1"),
        ("q6_k", 576, "q8_0"),
        ("iq4_xs", 576, "iq4_nl"),
        ("q4_k_m", 500, "f16"),
        ("q8_0", 500, "f16"),
    ],
)
def test_odd_widths_fall_back(mix: str, columns: int, expected: str) -> None:
    assert type_of(mix, "blk.7.attn_q.weight", columns) == expected


def test_the_output_gets_more_bits_and_a_tied_embedding_is_the_output() -> None:
    assert type_of("q4_k_m", "output.weight") == "q6_k"
    assert type_of("q4_k_m", "token_embd.weight") == "q4_k"
    assert type_of("q4_k_m", "token_embd.weight", tied=True) == "q6_k"
    assert type_of("q4_k_m", "token_embd.weight", 576, tied=True) == "q8_0"
    assert type_of("q8_0", "output.weight") == "q8_0"


def test_values_that_many_heads_share_get_more_bits() -> None:
    assert type_of("q2_k", "blk.5.attn_v.weight", num_kv_heads=8) == "q4_k"
    assert type_of("q2_k", "blk.5.attn_v.weight", num_kv_heads=16) == "q3_k"
    assert type_of("iq4_xs", "blk.5.attn_v.weight", num_kv_heads=8) == "q5_k"
    seventy = {"num_layers": 80, "num_kv_heads": 8}
    assert type_of("q4_k_m", "blk.10.attn_v.weight", **seventy) == "q5_k"
    assert type_of("q4_k_m", "blk.10.attn_v.weight", num_layers=80) == "q4_k"


def test_importance_changes_the_first_layers_of_legacy_mixes() -> None:
    assert type_of("q4_0", "blk.0.ffn_down.weight", has_importance=True) == "q4_1"
    assert type_of("q4_0", "blk.4.ffn_down.weight", has_importance=True) == "q4_0"
    assert type_of("iq4_nl", "blk.0.ffn_down.weight") == "q5_k"
    assert type_of("iq4_nl", "blk.0.ffn_down.weight", has_importance=True) == "iq4_nl"


@pytest.mark.parametrize("mix", MIXES)
def test_vectors_norms_and_routers_stay_whole(mix: str) -> None:
    for name in ("blk.0.attn_q.bias", "blk.0.ffn_norm.weight", "blk.0.ffn_gate_inp.weight"):
        assert type_of(mix, name) == "f32"
    assert MIXES[mix].base in GGML_TYPES


@pytest.mark.parametrize("mix", ["f32", "f16", "bf16"])
def test_plain_mixes_have_one_type(mix: str) -> None:
    names = ("output.weight", "token_embd.weight", "blk.0.attn_v.weight", "blk.31.ffn_down.weight")
    assert {type_of(mix, name, 500) for name in names} == {mix}


def test_an_unknown_mix_names_the_known_ones() -> None:
    assert find_mix("Q4_K_M").file_type == 15
    with pytest.raises(QuantizationError, match="q4_k_m"):
        find_mix("q4_k_xl")
