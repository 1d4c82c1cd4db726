"""The llama3 rule becomes a table of factors, and is found again in it."""

import pytest
import torch
from transformers import LlamaConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from llmopt.formats.gguf_header import GgufError
from llmopt.formats.gguf_rope import llama3_factors, llama3_scaling, rope_of_config

LLAMA_3_1 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}
LLAMA_3_2 = LLAMA_3_1 | {"factor": 32.0}


@pytest.mark.parametrize("scaling", [LLAMA_3_1, LLAMA_3_2], ids=["3.1", "3.2"])
@pytest.mark.parametrize("head_dim", [64, 128])
def test_factors_are_transformers_frequencies(scaling: dict, head_dim: int) -> None:
    config = LlamaConfig(head_dim=head_dim, rope_parameters={**scaling, "rope_theta": 5e5})
    scaled, _ = ROPE_INIT_FUNCTIONS["llama3"](config, torch.device("cpu"))
    plain = 1.0 / 5e5 ** (torch.arange(0, head_dim, 2) / head_dim)
    factors = llama3_factors(scaling, 5e5, head_dim)
    torch.testing.assert_close(factors, plain / scaled, rtol=1e-5, atol=0)


@pytest.mark.parametrize("scaling", [LLAMA_3_1, LLAMA_3_2], ids=["3.1", "3.2"])
@pytest.mark.parametrize("head_dim", [64, 128])
def test_the_rule_is_found_again(scaling: dict, head_dim: int) -> None:
    assert llama3_scaling(llama3_factors(scaling, 5e5, head_dim), 5e5) == scaling


def test_an_equal_rule_will_do() -> None:
    scaling = LLAMA_3_1 | {
        "low_freq_factor": 2.0,
        "high_freq_factor": 8.0,
        "original_max_position_embeddings": 16384,
    }
    assert llama3_scaling(llama3_factors(scaling, 5e5, 128), 5e5) == LLAMA_3_1


def test_a_table_of_ones_is_no_rule() -> None:
    assert llama3_scaling(torch.ones(32), 1e4) is None


@pytest.mark.parametrize(
    "factors",
    [
        torch.full((32,), 0.5),
        torch.full((32,), 4.0),
        torch.linspace(1, 8, 32),
        torch.linspace(8, 1, 32),
        torch.full((32,), torch.nan),
        torch.full((32,), torch.inf),
    ],
)
def test_another_table_is_refused(factors: torch.Tensor) -> None:
    with pytest.raises(GgufError, match="follows no rule"):
        llama3_scaling(factors, 1e4)


@pytest.mark.parametrize(
    ("config", "theta", "local_theta", "scaling"),
    [
        ({}, 1e4, 1e4, None),
        ({"rope_theta": 5e5}, 5e5, 1e4, None),
        ({"rope_theta": 5e5, "rope_scaling": LLAMA_3_1}, 5e5, 1e4, LLAMA_3_1),
        (
            {"rope_scaling": {"type": "linear", "factor": 2.0}},
            1e4,
            1e4,
            {"type": "linear", "factor": 2.0, "rope_type": "linear"},
        ),
        ({"rope_parameters": {"rope_type": "default", "rope_theta": 7.0}}, 7.0, 1e4, None),
        ({"rope_theta": 1e6, "rope_local_base_freq": 2e4}, 1e6, 2e4, None),
        (
            {
                "rope_parameters": {
                    "full_attention": {"rope_type": "default", "rope_theta": 1e6},
                    "sliding_attention": {"rope_type": "default", "rope_theta": 3e4},
                }
            },
            1e6,
            3e4,
            None,
        ),
    ],
)
def test_config_is_read_in_all_its_ways(
    config: dict, theta: float, local_theta: float, scaling: dict | None
) -> None:
    rope = rope_of_config(config)
    assert (rope.theta, rope.local_theta, rope.scaling) == (theta, local_theta, scaling)
