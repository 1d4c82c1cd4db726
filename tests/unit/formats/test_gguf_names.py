"""Names and contents of tensors go to GGUF and back."""

import gguf
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from llmopt.errors import ModelError
from llmopt.formats.gguf_blocks import GgufWeight, ggml_type
from llmopt.formats.gguf_names import (
    ARCHITECTURES,
    GgufArchitecture,
    architecture_of,
    permute_rows,
    unpermute_rows,
)

EVERY = pytest.mark.parametrize("architecture", ARCHITECTURES.values(), ids=ARCHITECTURES)


def hf_names(architecture: GgufArchitecture) -> list[str]:
    blocks = [f"model.layers.11.{stem}.weight" for stem in architecture.blocks]
    head = ["lm_head.weight"] if architecture.has_head else []
    return ["model.embed_tokens.weight", *blocks, "model.norm.weight", *head]


@EVERY
def test_names_come_back(architecture: GgufArchitecture) -> None:
    for name in hf_names(architecture):
        ggml_name = architecture.to_ggml(name)
        assert ggml_name is not None
        assert architecture.to_hf(ggml_name) == name


@EVERY
def test_names_are_those_of_the_gguf_package(architecture: GgufArchitecture) -> None:
    kinds = {name: kind for kind, name in gguf.MODEL_ARCH_NAMES.items()}
    theirs = gguf.get_tensor_name_map(kinds[architecture.name], 12)
    for name in hf_names(architecture):
        assert theirs.get_name(name, try_suffixes=(".weight",)) == architecture.to_ggml(name), name


@pytest.mark.parametrize(
    ("architecture", "name", "has_it"),
    [
        ("llama", "model.layers.0.self_attn.q_proj.bias", True),
        ("llama", "model.layers.0.mlp.down_proj.bias", True),
        ("llama", "model.layers.0.self_attn.q_norm.weight", False),
        ("llama", "model.layers.0.self_attn.rotary_emb.inv_freq", False),
        ("qwen2", "model.layers.0.self_attn.v_proj.bias", True),
        ("qwen2", "model.layers.0.self_attn.o_proj.bias", False),
        ("qwen3", "model.layers.0.self_attn.q_proj.bias", False),
        ("qwen3", "lm_head.bias", False),
        ("gemma3", "model.layers.0.pre_feedforward_layernorm.weight", True),
        ("gemma3", "vision_tower.embeddings.weight", False),
        ("gemma2", "lm_head.weight", False),
        ("gemma2", "model.layers.0.self_attn.q_norm.weight", False),
        ("phi3", "model.layers.0.self_attn.qkv_proj.weight", True),
        ("phi3", "model.layers.0.self_attn.q_proj.weight", False),
    ],
)
def test_what_an_architecture_does_not_have(architecture: str, name: str, has_it: bool) -> None:
    assert (ARCHITECTURES[architecture].to_ggml(name) is not None) is has_it


def test_an_unknown_class_is_refused() -> None:
    with pytest.raises(ModelError, match=r"MambaForCausalLM cannot.*LlamaForCausalLM"):
        architecture_of("MambaForCausalLM")


def test_only_llama_reorders_and_only_gemma_shifts() -> None:
    query, norm = "model.layers.0.self_attn.q_proj.weight", "model.layers.0.self_attn.q_norm.weight"
    for name, architecture in ARCHITECTURES.items():
        assert architecture.heads(query, 8, 2) == (8 if name == "llama" else None)
        assert architecture.shift(norm) == (1.0 if name.startswith("gemma") else 0.0)
        assert architecture.shift(query) == 0.0
    assert ARCHITECTURES["llama"].heads("model.layers.0.self_attn.k_proj.bias", 8, 2) == 2
    assert ARCHITECTURES["llama"].heads("model.layers.0.self_attn.v_proj.weight", 8, 2) is None


@given(st.integers(1, 4), st.sampled_from([2, 4, 8]), st.integers(0, 2))
def test_rows_are_interleaved_and_come_back(heads: int, head_dim: int, columns: int) -> None:
    shape = (heads * head_dim, columns) if columns else (heads * head_dim,)
    rows = torch.arange(shape[0] * max(columns, 1)).reshape(shape)
    permuted = permute_rows(rows, heads)
    half = head_dim // 2
    for row in range(shape[0]):  # row 2 i + j of a head was row j D / 2 + i
        head, within = divmod(row, head_dim)
        source = head * head_dim + (within % 2) * half + within // 2
        assert torch.equal(permuted[row], rows[source])
    assert torch.equal(unpermute_rows(permuted, heads), rows)


def test_blocks_go_with_their_rows() -> None:
    codes = torch.randint(0, 256, (16, 68), dtype=torch.uint8)
    codes[:, [1, 35]] = 0x3C  # scales of about 1
    weight = GgufWeight(codes, ggml_type("q8_0"), (16, 64))
    permuted = permute_rows(weight, 2)
    assert permuted.type == weight.type
    assert torch.equal(permuted.dequantize(), permute_rows(weight.dequantize(), 2))
