import json
import shutil

import pytest
import torch
from transformers import AutoModelForCausalLM

from llmopt.errors import CheckpointError, ModelError, UsageError
from llmopt.models.loader import load_model
from llmopt_kernels.paged_attention import AttentionMetadata

SCALINGS = {
    "default": None,
    "linear": {"rope_type": "linear", "factor": 4.0, "rope_theta": 10000.0},
    "llama3": {
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 64,
        "rope_theta": 500000.0,
    },
}


def reference_logits(path, ids: torch.Tensor) -> torch.Tensor:
    model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval()
    with torch.inference_mode():
        return model(ids[None]).logits[0]


@torch.inference_mode()
def logits(path, ids: torch.Tensor, dtype: str = "float32") -> torch.Tensor:
    model = load_model(path, dtype=dtype)
    hidden = model.forward(ids, torch.arange(len(ids)), AttentionMetadata.dense([len(ids)]))
    return model.compute_logits(hidden)


@pytest.mark.parametrize("scaling", SCALINGS)
def test_logits_equal_transformers(make_tiny_llama, scaling):
    path = make_tiny_llama(rope_parameters=SCALINGS[scaling])
    ids = torch.randint(0, 128, (100,), generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(logits(path, ids), reference_logits(path, ids), rtol=0, atol=2e-5)


@pytest.mark.parametrize(
    "overrides",
    [
        {"tie_word_embeddings": True},
        {"attention_bias": True, "mlp_bias": True},
        {"num_key_value_heads": 4},
        {"head_dim": 32},
    ],
)
def test_variants_equal_transformers(make_tiny_llama, overrides):
    path = make_tiny_llama(**overrides)
    ids = torch.arange(40) % 128
    torch.testing.assert_close(logits(path, ids), reference_logits(path, ids), rtol=0, atol=2e-5)


def test_sequences_of_a_batch_do_not_see_each_other(tiny_llama):
    model = load_model(tiny_llama)
    ids = torch.arange(30)
    positions = torch.cat([torch.arange(10), torch.arange(20)])
    with torch.inference_mode():
        both = model.forward(ids, positions, AttentionMetadata.dense([10, 20]))
        second = model.forward(ids[10:], torch.arange(20), AttentionMetadata.dense([20]))
    torch.testing.assert_close(both[10:], second, rtol=0, atol=1e-5)


def test_bfloat16_is_near_float32(tiny_llama):
    ids = torch.arange(50)
    exact, rounded = logits(tiny_llama, ids), logits(tiny_llama, ids, "bfloat16").float()
    assert (rounded - exact).norm() / exact.norm() < 0.02


def test_weight_bytes_count_what_a_step_reads(tiny_llama, dense_kernel):
    model = load_model(tiny_llama, dtype="bfloat16")
    block = 64 * (64 + 2 * 32) + 64 * 64 + 3 * 64 * 96
    assert model.weight_bytes == 2 * (2 * block + 128 * 64)
    assert model.kernels == (dense_kernel,)


def edit_config(source, target, **changes):
    shutil.copytree(source, target)
    config = json.loads((target / "config.json").read_text())
    config.update(changes)
    (target / "config.json").write_text(json.dumps(config))
    return target


@pytest.mark.parametrize(
    ("changes", "error", "words"),
    [
        ({"architectures": ["MambaForCausalLM"]}, ModelError, "MambaForCausalLM is not supported"),
        ({"hidden_act": "gelu"}, ModelError, "gelu"),
        ({"rope_parameters": {"rope_type": "proportional"}}, ModelError, "proportional"),
        ({"num_key_value_heads": 3}, ModelError, "cannot share"),
        ({"num_hidden_layers": None}, ModelError, "config.json"),
        (
            {"vocab_size": 130},
            CheckpointError,
            r"\[128, 64\] where config.json implies \[130, 64\]",
        ),
        ({"num_hidden_layers": 3}, CheckpointError, "layers.2"),
        ({"quantization_config": {"quant_method": "hqq"}}, CheckpointError, "hqq"),
    ],
)
def test_configs_that_do_not_fit_are_refused(tiny_llama, tmp_path, changes, error, words):
    with pytest.raises(error, match=words):
        load_model(edit_config(tiny_llama, tmp_path / "model", **changes))


def test_impossible_settings_are_refused(tiny_llama):
    with pytest.raises(UsageError, match="int7"):
        load_model(tiny_llama, dtype="int7")
    with pytest.raises(UsageError, match="not a device"):
        load_model(tiny_llama, device="gpu0")
    if not torch.cuda.is_available():
        with pytest.raises(UsageError, match="0 CUDA devices"):
            load_model(tiny_llama, device="cuda")
