import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import log_softmax, rel_entr

from llmopt.quality import divergence
from llmopt.quality.divergence import compare_logits


def random_logits(seed: int, num_rows: int, vocab_size: int, scale: float = 3.0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn((num_rows, vocab_size), generator=generator) * scale


def next_tokens(num_rows: int, vocab_size: int) -> torch.Tensor:
    return torch.arange(num_rows) * 7 % vocab_size


@given(
    num_rows=st.integers(1, 40),
    vocab_size=st.integers(1, 300),
    scale=st.floats(0.01, 30),
    offset=st.floats(-100, 100),
    chunk_elements=st.integers(1, 4000),
)
@settings(max_examples=60, deadline=None)
def test_equals_float64_by_scipy(num_rows, vocab_size, scale, offset, chunk_elements):
    base = random_logits(0, num_rows, vocab_size, scale)
    target = base + random_logits(1, num_rows, vocab_size, 0.3) + offset
    tokens = next_tokens(num_rows, vocab_size)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(divergence, "CHUNK_ELEMENTS", chunk_elements)
        statistics = compare_logits(base, target, tokens)
    base_log_prob = log_softmax(base.double().numpy(), axis=1)
    target_log_prob = log_softmax(target.double().numpy(), axis=1)
    kld = rel_entr(np.exp(base_log_prob), np.exp(target_log_prob)).sum(axis=1)
    rows = np.arange(num_rows)
    np.testing.assert_allclose(statistics.kld, kld, rtol=1e-4, atol=2e-6)
    np.testing.assert_array_equal(
        statistics.same_top1, base.numpy().argmax(axis=1) == target.numpy().argmax(axis=1)
    )
    np.testing.assert_allclose(
        statistics.base_confidence, np.exp(base_log_prob).max(axis=1), rtol=1e-5
    )
    np.testing.assert_allclose(
        statistics.base_log_prob, base_log_prob[rows, tokens], rtol=1e-6, atol=2e-5
    )
    np.testing.assert_allclose(
        statistics.target_log_prob, target_log_prob[rows, tokens], rtol=1e-6, atol=2e-5
    )


def test_a_difference_as_small_as_an_eight_bit_format_makes_is_exact_to_a_thousandth():
    base = random_logits(0, 200, 5000)
    target = base + random_logits(1, 200, 5000, 0.01)
    base_log_prob = log_softmax(base.double().numpy(), axis=1)
    target_log_prob = log_softmax(target.double().numpy(), axis=1)
    kld = rel_entr(np.exp(base_log_prob), np.exp(target_log_prob)).sum(axis=1)
    statistics = compare_logits(base, target, next_tokens(200, 5000))
    assert kld.mean() == pytest.approx(5e-5, rel=0.2)
    assert float(statistics.kld.mean()) == pytest.approx(kld.mean(), rel=1e-3)


@given(st.integers(1, 30), st.integers(1, 200), st.sampled_from([torch.float32, torch.bfloat16]))
@settings(max_examples=30, deadline=None)
def test_equal_logits_diverge_by_exactly_zero(num_rows, vocab_size, dtype):
    logits = random_logits(3, num_rows, vocab_size).to(dtype)
    statistics = compare_logits(logits, logits.clone(), next_tokens(num_rows, vocab_size))
    assert torch.equal(statistics.kld, torch.zeros(num_rows, dtype=torch.float64))
    assert bool(statistics.same_top1.all())
    assert torch.equal(statistics.base_log_prob, statistics.target_log_prob)


def test_divergence_is_never_negative():
    base = random_logits(0, 500, 1000)
    target = base * (1 + 1e-7)
    assert float(compare_logits(base, target, next_tokens(500, 1000)).kld.min()) >= 0


def test_divergence_grows_with_the_perturbation_as_theory_says():
    """KLD of a small Gaussian perturbation is half the variance of it under the base, s^2 / 2."""
    base = random_logits(0, 400, 2000, scale=0.5)
    noise = random_logits(1, 400, 2000, scale=1.0)
    means = [
        float(compare_logits(base, base + s * noise, next_tokens(400, 2000)).kld.mean())
        for s in (0.01, 0.03, 0.1, 0.3)
    ]
    assert means == sorted(means)
    for s, mean in zip((0.01, 0.03, 0.1, 0.3), means, strict=True):
        assert mean == pytest.approx(s * s / 2, rel=0.02)


def test_direction_is_base_first():
    base = torch.tensor([[0.9, 0.1]]).log()
    target = torch.tensor([[0.5, 0.5]]).log()
    statistics = compare_logits(base, target, torch.tensor([0]))
    assert float(statistics.kld) == pytest.approx(0.9 * np.log(1.8) + 0.1 * np.log(0.2))


def test_a_tie_goes_to_the_first_token():
    base, target = torch.tensor([[1.0, 0.0, 0.0]]), torch.tensor([[1.0, 1.0, 0.0]])
    assert bool(compare_logits(base, target, torch.tensor([0])).same_top1)
    assert not bool(compare_logits(base, target.flip(1), torch.tensor([0])).same_top1)


def test_inputs_are_left_as_they_were():
    base, target = random_logits(0, 5, 20), random_logits(1, 5, 20)
    copies = base.clone(), target.clone()
    compare_logits(base, target, next_tokens(5, 20))
    assert torch.equal(base, copies[0])
    assert torch.equal(target, copies[1])


@pytest.mark.parametrize("broken", [float("nan"), float("inf"), float("-inf")])
def test_broken_logits_are_noticed(broken):
    base, target = random_logits(0, 5, 20), random_logits(1, 5, 20)
    target[2, 3] = broken
    statistics = compare_logits(base, target, next_tokens(5, 20))
    assert not statistics.is_finite
    assert compare_logits(base, base, next_tokens(5, 20)).is_finite
