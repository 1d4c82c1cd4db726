"""Rotary frequencies are those of transformers, for every rule that configs name."""

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from llmopt.errors import ModelError
from llmopt.layers.rotary import SUPPORTED_ROPE_TYPES, inverse_frequencies
from llmopt.models.config import ModelConfig
from llmopt.models.rope import Rope
from llmopt_kernels.rotary import apply_rotary, rotary_tables
from llmopt_kernels.rotary.reference import rotary_reference

SHORT, LONG = [1.0 + 0.1 * i for i in range(8)], [4.0 + i for i in range(8)]
RULES: list[dict[str, Any]] = [
    {"rope_type": "linear", "factor": 4.0},
    {"rope_type": "dynamic", "factor": 4.0},
    {
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 64,
    },
    {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 128},
    {
        "rope_type": "yarn",
        "factor": 16.0,
        "original_max_position_embeddings": 32,
        "beta_fast": 8.0,
        "beta_slow": 2.0,
        "truncate": False,
    },
    {
        "rope_type": "yarn",
        "factor": 4.0,
        "original_max_position_embeddings": 128,
        "mscale": 0.7,
        "mscale_all_dim": 0.5,
    },
    {
        "rope_type": "yarn",
        "factor": 4.0,
        "original_max_position_embeddings": 128,
        "attention_factor": 1.5,
    },
    {
        "rope_type": "longrope",
        "short_factor": SHORT,
        "long_factor": LONG,
        "original_max_position_embeddings": 128,
    },
    {
        "rope_type": "longrope",
        "short_factor": SHORT,
        "long_factor": LONG,
        "original_max_position_embeddings": 128,
        "factor": 8.0,
        "attention_factor": 1.25,
    },
]


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule["rope_type"])
def test_frequencies_equal_transformers(rule: dict[str, Any]) -> None:
    hf = AutoConfig.for_model(
        "llama",
        hidden_size=64,
        num_attention_heads=4,
        max_position_embeddings=512,
        rope_parameters={"rope_theta": 5e4, **rule},
    )
    expected, expected_scale = ROPE_INIT_FUNCTIONS[rule["rope_type"]](hf)
    config = ModelConfig.from_hf({**hf.to_dict(), "architectures": ["LlamaForCausalLM"]})
    (rope,) = config.ropes
    found, scale = inverse_frequencies(16, rope.theta, rope.scaling)
    torch.testing.assert_close(found, expected.float(), rtol=1e-6, atol=0)
    assert scale == pytest.approx(expected_scale)
    plain, _ = inverse_frequencies(16, rope.theta, None)
    assert torch.equal(found, plain) == (rule["rope_type"] == "dynamic")
    assert config.max_model_len == (128 if rule["rope_type"] == "longrope" else 512)


@pytest.mark.parametrize("share", [-0.5, 1.5, float("nan"), float("inf")])
def test_no_more_of_a_head_is_rotated_than_it_has(share: float) -> None:
    hf = AutoConfig.for_model("llama", rope_parameters={"rope_theta": 1e4, "rope_type": "default"})
    config = {**hf.to_dict(), "architectures": ["LlamaForCausalLM"]}
    config["rope_parameters"] |= {"partial_rotary_factor": share}
    with pytest.raises(ModelError, match=f"partial_rotary_factor {share}"):
        ModelConfig.from_hf(config)


@given(st.integers(1, 512), st.floats(0, 1, exclude_min=True))
def test_channels_are_rotated_in_pairs(head_dim: int, share: float) -> None:
    rope = Rope(1e4, share=share)
    if int(head_dim * share) % 2:
        with pytest.raises(ModelError, match="in pairs"):
            rope.num_channels(head_dim)
    else:
        frequencies, _ = inverse_frequencies(rope.num_channels(head_dim), rope.theta, None)
        assert 2 * len(frequencies) <= head_dim


@pytest.mark.parametrize(("num_channels", "num_factors"), [(2, 8), (16, 1), (16, 4), (16, 9)])
def test_a_factor_for_each_frequency(num_channels: int, num_factors: int) -> None:
    scaling = {"rope_type": "longrope", "short_factor": [1.0] * num_factors, "factor": 1.0}
    with pytest.raises(ModelError, match=f"{num_factors} factors in short_factor"):
        inverse_frequencies(num_channels, 1e4, scaling)


def test_every_rule_is_tested() -> None:
    assert {rule["rope_type"] for rule in RULES} | {"default"} == set(SUPPORTED_ROPE_TYPES)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("num_rotated", [8, 6, 2])
def test_some_channels_of_a_head_are_rotated_and_scaled(
    num_rotated: int, dtype: torch.dtype
) -> None:
    x = torch.randn(5, 3, 8, generator=torch.Generator().manual_seed(0)).to(dtype)
    positions = torch.tensor([0, 1, 7, 100, 3])
    inv_freq = 1 / 100 ** (torch.arange(0, num_rotated, 2) / num_rotated)
    found = apply_rotary(x, rotary_tables(positions, inv_freq, dtype, 1.25))
    expected = rotary_reference(x, positions, inv_freq, 1.25)
    tolerance = 1e-5 if dtype == torch.float32 else 0.05
    torch.testing.assert_close(found, expected, rtol=0, atol=tolerance)
    assert torch.equal(found[..., num_rotated:], x[..., num_rotated:])
    assert not torch.allclose(found[..., :num_rotated], x[..., :num_rotated])
