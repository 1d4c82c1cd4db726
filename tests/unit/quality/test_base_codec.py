import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import log_softmax, rel_entr

from llmopt.quality.base_codec import NUM_EXACT, concatenate_rows, decode, encode


def language_like(num_rows: int, vocab_size: int, seed: int = 0) -> torch.Tensor:
    """Logits with a few likely tokens and a long tail, moved off zero."""
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn((num_rows, vocab_size), generator=generator)
    return 4.0 * noise + 17.0


def right(logits: torch.Tensor) -> torch.Tensor:
    """Some right tokens, of which most are unlikely."""
    return torch.arange(len(logits)) * 7 % logits.shape[1]


def kl(logits: torch.Tensor, decoded: torch.Tensor) -> np.ndarray:
    p, q = (np.exp(log_softmax(x.double().numpy(), axis=1)) for x in (logits, decoded))
    return rel_entr(p, q).sum(axis=1)


def test_costs_little_and_keeps_the_likeliest_and_the_right_tokens_exactly():
    logits = language_like(40, 20_000)
    decoded = decode(encode(logits, right(logits)))
    assert decoded.shape == logits.shape
    assert kl(logits, decoded).mean() < 1e-5
    likeliest = logits.topk(NUM_EXACT, dim=1).indices
    likeliest = torch.cat([likeliest, right(logits).unsqueeze(1)], dim=1)
    exact = torch.log_softmax(logits.double(), dim=1).gather(1, likeliest)
    kept = torch.log_softmax(decoded.double(), dim=1).gather(1, likeliest)
    # equal log-probabilities, not only logits: the tail keeps its total
    assert torch.allclose(kept, exact, rtol=0, atol=3e-6)
    assert torch.equal(decoded.argmax(dim=1), logits.argmax(dim=1))


def test_takes_little_more_than_a_byte_per_token():
    rows = encode(language_like(3, 49_152), torch.arange(3))
    tensors = (rows.codes, rows.exact_logits, rows.exact_tokens, rows.tail)
    assert sum(t.nbytes for t in tensors) / (3 * 49_152) < 1.05


@given(
    vocab_size=st.integers(3, 600),
    scale=st.floats(0, 12),
    offset=st.floats(-50, 50),
    seed=st.integers(0, 50),
)
@settings(max_examples=80, deadline=None)
def test_any_row_comes_back_nearly(vocab_size, scale, offset, seed):
    generator = torch.Generator().manual_seed(seed)
    logits = scale * torch.randn((3, vocab_size), generator=generator) + offset
    decoded = decode(encode(logits, right(logits)))
    assert bool(decoded.isfinite().all())
    assert kl(logits, decoded).max() < 1e-3
    assert torch.equal(decoded.argmax(dim=1), logits.argmax(dim=1))


def test_a_padded_vocabulary_spoils_nothing():
    """Columns that can never be sampled must not stretch the steps of the others."""
    logits = language_like(20, 5000)
    padded = torch.cat([logits, torch.full((20, 50), -1e9)], dim=1)
    decoded = decode(encode(padded, right(padded)))
    assert kl(padded, decoded).mean() < 2e-5
    assert bool(decoded.isfinite().all())
    only_padding = torch.full((2, 5000), -1e9)
    only_padding[:, :NUM_EXACT] = torch.arange(NUM_EXACT) * 0.01
    assert kl(only_padding, decode(encode(only_padding, right(only_padding)))).max() < 1e-9


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_other_dtypes_and_the_input_stay_as_they_are(dtype):
    logits = language_like(4, 700).to(dtype)
    copy = logits.clone()
    assert kl(logits.float(), decode(encode(logits, right(logits)))).max() < 1e-4
    assert torch.equal(logits, copy)


def test_rows_are_independent_of_their_neighbours():
    logits = language_like(6, 1000)
    whole = decode(encode(logits, right(logits)))
    tokens = right(logits)
    parts = concatenate_rows([encode(logits[:2], tokens[:2]), encode(logits[2:], tokens[2:])])
    assert torch.equal(decode(parts), whole)
    assert torch.equal(decode(parts.rows(3, 5)), whole[3:5])
