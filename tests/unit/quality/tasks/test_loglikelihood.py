"""Log-likelihoods against transformers, one pair at a time and in float64."""

from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from llmopt.errors import ModelError, UsageError
from llmopt.models.loader import load_model
from llmopt.quality.tasks import loglikelihood
from llmopt.quality.tasks.encode import TokenPair
from llmopt.quality.tasks.loglikelihood import score_pairs

CONTEXTS = [(5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16), (20,), (5, 6), (30, 31, 32, 33, 34)]


def random_pairs(num_pairs: int, longest: int = 6) -> list[TokenPair]:
    generator = torch.Generator().manual_seed(3)
    pairs = []
    for index in range(num_pairs):
        length = int(torch.randint(1, longest + 1, (), generator=generator))
        continuation = torch.randint(3, 128, (length,), generator=generator).tolist()
        pairs.append(TokenPair(CONTEXTS[index % len(CONTEXTS)], tuple(continuation)))
    return pairs


@pytest.fixture(scope="module")
def transformers_scores() -> Callable[[Path, Sequence[TokenPair]], list[tuple[float, bool]]]:
    from transformers import AutoModelForCausalLM

    def score(path: Path, pairs: Sequence[TokenPair]) -> list[tuple[float, bool]]:
        model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float64).eval()
        results = []
        for pair in pairs:
            ids = torch.tensor([[*pair.context, *pair.continuation]])
            with torch.inference_mode():
                logits = model(ids).logits[0, len(pair.context) - 1 : -1]
            target = torch.tensor(pair.continuation)
            log_probs = logits.log_softmax(dim=1)[torch.arange(len(target)), target]
            results.append((log_probs.sum().item(), bool((logits.argmax(dim=1) == target).all())))
        return results

    return score


@pytest.mark.parametrize("model_type", ["llama", "gemma3_text"])
@pytest.mark.parametrize("max_batch_tokens", [1, 40, 10_000])
def test_equals_transformers(make_tiny_model, transformers_scores, model_type, max_batch_tokens):
    path = make_tiny_model(model_type)
    pairs = random_pairs(14)
    expected = transformers_scores(path, pairs)
    results = score_pairs(
        load_model(path, dtype="float32"), pairs, max_batch_tokens=max_batch_tokens
    )
    assert [r.log_prob for r in results] == pytest.approx([e[0] for e in expected], abs=2e-4)
    assert [r.is_greedy for r in results] == [e[1] for e in expected]


def test_greedy_continuations_are_known_as_such(tiny_llama):
    model = load_model(tiny_llama, dtype="float32")
    first = max(range(128), key=lambda t: _log_prob(model, TokenPair((5, 6), (t,))))
    second = max(range(128), key=lambda t: _log_prob(model, TokenPair((5, 6, first), (t,))))
    other = (second + 1) % 128
    endings = [(first, second), (first, other), (other, second), (first,)]
    results = score_pairs(model, [TokenPair((5, 6), ending) for ending in endings])
    assert [result.is_greedy for result in results] == [True, False, first == other, True]


def test_rows_of_logits_that_come_in_chunks(tiny_llama, monkeypatch):
    model = load_model(tiny_llama, dtype="float32")
    pairs = random_pairs(9)
    whole = score_pairs(model, pairs)
    monkeypatch.setattr(loglikelihood, "rows_per_chunk", lambda vocab_size: 3)
    chunked = score_pairs(model, pairs)
    assert [r.is_greedy for r in chunked] == [r.is_greedy for r in whole]
    assert [r.log_prob for r in chunked] == pytest.approx([r.log_prob for r in whole], abs=1e-5)


@settings(max_examples=20, deadline=None)
@given(st.permutations(range(8)), st.integers(1, 60))
def test_what_is_beside_a_pair_does_not_matter(tiny_llama, order, max_batch_tokens):
    model = load_model(tiny_llama, dtype="float32")
    pairs = random_pairs(8)
    alone = [score_pairs(model, [pair])[0].log_prob for pair in pairs]
    shuffled = score_pairs(model, [pairs[i] for i in order], max_batch_tokens=max_batch_tokens)
    assert [r.log_prob for r in shuffled] == pytest.approx([alone[i] for i in order], abs=2e-4)


def test_contexts_that_are_too_long_are_cut_from_the_left(make_tiny_llama):
    path = make_tiny_llama(max_position_embeddings=16)
    model = load_model(path, dtype="float32")
    long = TokenPair(tuple(range(3, 43)), (50, 51, 52))
    cut = TokenPair(long.context[-14:], long.continuation)
    assert _log_prob(model, long) == pytest.approx(_log_prob(model, cut), abs=1e-6)
    with pytest.raises(UsageError, match="at most 16"):
        score_pairs(model, [TokenPair((3,), tuple(range(3, 20)))])


def test_progress_counts_pairs(tiny_llama):
    model = load_model(tiny_llama, dtype="float32")
    heard: list[tuple[int, int]] = []
    pairs = random_pairs(8)
    score_pairs(model, pairs, max_batch_tokens=20, on_pair=lambda *counts: heard.append(counts))
    assert len(heard) > 1
    assert heard == sorted(heard)
    assert heard[-1] == (8, 8)
    assert score_pairs(model, []) == []


def test_broken_weights_are_reported(tiny_llama):
    model = load_model(tiny_llama, dtype="float32")
    model.embedding = torch.full_like(model.embedding, float("nan"))
    with pytest.raises(ModelError, match="not finite"):
        score_pairs(model, random_pairs(2))


def _log_prob(model, pair: TokenPair) -> float:
    return score_pairs(model, [pair])[0].log_prob
