"""Tiny models that guess for each other, and their tokens computed without any cache."""

from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch

from llmopt.engine.config import EngineConfig
from llmopt.engine.kv_plan import plan_kv
from llmopt.engine.request import Request
from llmopt.engine.sampling_params import SamplingParams
from llmopt.engine.speculation.draft_model import DraftModel
from llmopt.models.decoder import Decoder
from llmopt.models.loader import load_model
from llmopt_kernels.paged_attention import AttentionMetadata


@pytest.fixture(scope="session")
def other_model(make_tiny_llama: Callable[..., Path]) -> Decoder:
    """A model with the vocabulary of `tiny_model` that seldom agrees with it."""
    return load_model(
        make_tiny_llama(seed=9, num_hidden_layers=1, max_position_embeddings=256), dtype="float32"
    )


@pytest.fixture(scope="session")
def windowed_model(make_tiny_model: Callable[..., Path]) -> Decoder:
    """A model that sees nine tokens."""
    return load_model(make_tiny_model("mistral"), dtype="float32")


def dense_logits(model: Decoder, tokens: Sequence[int]) -> torch.Tensor:
    """Logits [V] behind `tokens`, without a cache."""
    with torch.inference_mode():
        hidden = model.forward(
            torch.tensor(tokens), torch.arange(len(tokens)), AttentionMetadata.dense([len(tokens)])
        )
        return model.compute_logits(hidden[-1:])[0]


@pytest.fixture(scope="session")
def logits_of() -> Callable[[Decoder, Sequence[int]], torch.Tensor]:
    return dense_logits


@pytest.fixture(scope="session")
def continue_greedily() -> Callable[[Decoder, Sequence[int], int], tuple[int, ...]]:
    """The next tokens of a model, computed one at a time."""

    def run(model: Decoder, tokens: Sequence[int], num_tokens: int) -> tuple[int, ...]:
        known = list(tokens)
        for _ in range(num_tokens):
            known.append(int(dense_logits(model, known).argmax()))
        return tuple(known[len(tokens) :])

    return run


@pytest.fixture(scope="session")
def make_draft_model() -> Callable[..., DraftModel]:
    """A proposer with a small cache; keyword arguments go to EngineConfig."""

    def make(
        model: Decoder,
        *,
        sampling: str = "rejection",
        vocab_size: int | None = None,
        **settings: object,
    ) -> DraftModel:
        config = EngineConfig(**{"block_size": 4, "num_blocks": 64, **settings})
        return DraftModel(
            model,
            plan_kv(model.config, config, model.dtype, model.device),
            max_chunk=config.max_num_batched_tokens,
            vocab_size=vocab_size or model.config.vocab_size,
            sampling=sampling,
        )

    return make


@pytest.fixture(scope="session")
def make_request() -> Callable[..., Request]:
    """A request that decodes; keyword arguments go to SamplingParams."""

    def make(tokens: Sequence[int], name: str = "r", seed: int = 0, **params: object) -> Request:
        return Request(name, list(tokens), len(tokens), SamplingParams(**params), 128, seed=seed)

    return make
