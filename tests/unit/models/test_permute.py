"""Renumbering channels keeps the function and mixes the groups."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM, PreTrainedModel

from llmopt.models.permute import permute_channels

TOKENS = torch.arange(3, 27)[None]


def build_llama(tied: bool, biases: bool, kv_heads: int) -> LlamaForCausalLM:
    config = LlamaConfig(
        vocab_size=32,
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=kv_heads,
        initializer_range=0.2,
        tie_word_embeddings=tied,
        attention_bias=biases,
        mlp_bias=biases,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = LlamaForCausalLM(config).eval()
        for parameter in model.parameters():  # norms and biases are not all one or zero
            parameter.data.add_(0.1 * torch.randn_like(parameter))
    return model


def stored_tensors(model: PreTrainedModel, tied: bool) -> dict[str, torch.Tensor]:
    tensors = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    if tied:
        del tensors["lm_head.weight"]
    return tensors


@settings(max_examples=12, deadline=None)
@given(st.booleans(), st.booleans(), st.sampled_from([1, 2, 4]), st.integers(0, 2**40))
def test_logits_stay_equal(tied: bool, biases: bool, kv_heads: int, seed: int) -> None:
    model = build_llama(tied, biases, kv_heads)
    with torch.no_grad():
        before = model(TOKENS).logits
        tensors = stored_tensors(model, tied)
        permuted = permute_channels(tensors, num_heads=4, num_kv_heads=kv_heads, seed=seed)
        missing, unexpected = model.load_state_dict(permuted, strict=False)
        after = model(TOKENS).logits
    assert missing == (["lm_head.weight"] if tied else [])
    assert unexpected == []
    assert before.abs().max() > 1
    torch.testing.assert_close(after, before, rtol=1e-4, atol=2e-4)


@pytest.mark.parametrize("model_type", ["qwen2", "qwen3", "gemma3_text"])
@pytest.mark.parametrize("kv_heads", [1, 2])
def test_logits_stay_equal_in_every_architecture(
    make_tiny_model: Callable[..., Path], model_type: str, kv_heads: int
) -> None:
    path = make_tiny_model(model_type, num_key_value_heads=kv_heads, tie_word_embeddings=True)
    model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval()
    with torch.no_grad():
        before = model(TOKENS).logits
        tensors = stored_tensors(model, tied=True)
        permuted = permute_channels(tensors, num_heads=4, num_kv_heads=kv_heads, seed=1)
        missing, unexpected = model.load_state_dict(permuted, strict=False)
        after = model(TOKENS).logits
    assert (missing, unexpected) == (["lm_head.weight"], [])
    kept = {name for name in tensors if torch.equal(permuted[name], tensors[name])}
    assert {name.split(".")[-2] for name in kept} <= {"q_norm", "k_norm", "q_proj", "k_proj"}
    assert not {name for name in kept if name.endswith("proj.weight")}  # biases of q and k only
    torch.testing.assert_close(after, before, rtol=1e-4, atol=2e-4)


@pytest.fixture(scope="module")
def tensors() -> dict[str, torch.Tensor]:
    return stored_tensors(build_llama(tied=False, biases=False, kv_heads=2), tied=False)


def test_values_are_moved_and_never_changed(tensors: dict[str, torch.Tensor]) -> None:
    permuted = permute_channels(tensors, num_heads=4, num_kv_heads=2, seed=7)
    assert permuted.keys() == tensors.keys()
    for name, tensor in permuted.items():
        assert tensor.shape == tensors[name].shape
        assert torch.equal(tensor.flatten().sort()[0], tensors[name].flatten().sort()[0]), name
        assert not torch.equal(tensor, tensors[name]), name


def test_every_group_of_inputs_is_spread_over_the_new_groups() -> None:
    hidden, intermediate, group = 576, 1536, 32
    columns = {
        "q_proj": hidden,
        "k_proj": hidden,
        "gate_proj": hidden,
        "up_proj": hidden,
        "v_proj": hidden,
        "down_proj": intermediate,
        "o_proj": hidden,
    }
    rows = {"gate_proj": intermediate, "up_proj": intermediate, "k_proj": 192, "v_proj": 192}
    tensors = {"model.embed_tokens.weight": torch.arange(hidden).float()[None]}
    for name, width in columns.items():
        block = "self_attn" if name in ("q_proj", "k_proj", "v_proj", "o_proj") else "mlp"
        old_group = (torch.arange(width) // group).float()
        tensors[f"model.layers.0.{block}.{name}.weight"] = old_group.expand(
            rows.get(name, hidden), width
        ).clone()
    permuted = permute_channels(tensors, num_heads=9, num_kv_heads=3, seed=20_240_101)
    for name, tensor in permuted.items():
        if "layers" not in name:
            continue
        # value channels move within a head of two groups of 32 each; others over all groups
        most = 24 if "o_proj" in name else 8
        for new_group in tensor[0].split(group):
            assert new_group.unique(return_counts=True)[1].max() <= most, name


def test_same_seed_same_order_other_seed_other_order(tensors: dict[str, torch.Tensor]) -> None:
    name = "model.layers.1.mlp.down_proj.weight"
    first, again, other = (
        permute_channels(tensors, num_heads=4, num_kv_heads=2, seed=seed)[name]
        for seed in (1, 1, 2)
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_layers_have_orders_of_their_own() -> None:
    width = 96
    numbers = torch.arange(width).float()
    tensors = {"model.embed_tokens.weight": torch.zeros(1, 8)}
    for layer in range(2):
        prefix = f"model.layers.{layer}"
        tensors[f"{prefix}.self_attn.v_proj.weight"] = torch.zeros(8, 8)
        tensors[f"{prefix}.mlp.gate_proj.weight"] = torch.zeros(width, 8)
        tensors[f"{prefix}.mlp.down_proj.weight"] = numbers.expand(8, width).clone()
    permuted = permute_channels(tensors, num_heads=2, num_kv_heads=1, seed=0)
    first, second = (permuted[f"model.layers.{i}.mlp.down_proj.weight"][0] for i in range(2))
    assert not torch.equal(first, second)
