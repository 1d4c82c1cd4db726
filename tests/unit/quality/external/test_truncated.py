"""A bound from a few tokens, against the divergence from all of them."""

import dataclasses
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from llmopt.errors import ModelError, UsageError
from llmopt.quality.divergence import compare_logits
from llmopt.quality.external.truncated import (
    TruncatedLogProbs,
    TruncatedSource,
    compare_truncated,
    score_truncated,
)
from llmopt.quality.scores import score_windows

V = 30


def pair(seed: int, noise: float, n: int = 12):
    generator = torch.Generator().manual_seed(seed)
    base = torch.randn(n, V, generator=generator) * 3
    target = base + noise * torch.randn(n, V, generator=generator)
    return base, target, torch.randint(0, V, (n,), generator=generator)


@settings(deadline=None)
@given(
    seed=st.integers(0, 10_000),
    noise=st.sampled_from([0.0, 0.01, 0.3, 4.0]),
    k=st.integers(1, V),
)
def test_the_bound_never_passes_the_divergence_and_all_else_is_exact(truncated, seed, noise, k):
    base, target, next_tokens = pair(seed, noise)
    exact = compare_logits(base, target, next_tokens)
    bound = compare_truncated(base, truncated(target, next_tokens, k), next_tokens)
    assert bool((bound.kld <= exact.kld * (1 + 1e-5) + 1e-6).all())
    torch.testing.assert_close(bound.target_log_prob, exact.target_log_prob, rtol=0, atol=1e-5)
    torch.testing.assert_close(bound.base_log_prob, exact.base_log_prob, rtol=0, atol=1e-5)
    torch.testing.assert_close(bound.base_confidence, exact.base_confidence)
    assert torch.equal(bound.same_top1, exact.same_top1)


@settings(deadline=None)
@given(seed=st.integers(0, 10_000), ks=st.tuples(st.integers(1, 9), st.integers(1, 9)))
def test_the_bound_rises_with_the_tokens_that_are_told(truncated, seed, ks):
    base, target, next_tokens = pair(seed, 0.3)
    few, many = (
        compare_truncated(base, truncated(target, next_tokens, k), next_tokens).kld
        for k in sorted(ks)
    )
    assert bool((few <= many + 1e-4).all())


def test_all_tokens_told_give_the_divergence_itself(truncated):
    base, target, next_tokens = pair(3, 1.0)
    bound = compare_truncated(base, truncated(target, next_tokens, V), next_tokens)
    exact = compare_logits(base, target, next_tokens)
    torch.testing.assert_close(bound.kld, exact.kld, rtol=1e-5, atol=1e-7)


def test_the_bound_is_the_divergence_of_the_grouped_distributions(truncated):
    base, target, next_tokens = pair(5, 0.7, n=1)
    told = truncated(target, next_tokens, 4)
    p, q = (torch.softmax(x[0].double(), dim=0).numpy() for x in (base, target))
    named = sorted({*np.argsort(-q)[:4].tolist(), int(next_tokens)})
    p_groups = np.append(p[named], 1 - p[named].sum())
    q_groups = np.append(q[named], 1 - q[named].sum())
    expected = float((p_groups * np.log(p_groups / q_groups)).sum())
    got = compare_truncated(base, told, next_tokens).kld
    assert got.item() == pytest.approx(expected, rel=1e-4)


def test_rounding_that_leaves_nothing_for_the_rest_stays_finite_and_below():
    base = torch.tensor([[3.0, 2.0, 1.0, 0.0]])
    p = base.double().log_softmax(dim=1)[:, :2]
    told = TruncatedLogProbs(
        torch.tensor([[0, 1]]),
        p - torch.logsumexp(p, dim=1, keepdim=True) + 1e-8,  # more than 1 together
        torch.ones(1, 2, dtype=torch.bool),
        torch.tensor([-0.3], dtype=torch.float64),
    )
    kld = compare_truncated(base, told, torch.tensor([0])).kld.item()
    rest = 1 - float(p.exp().sum())
    assert 0 < kld < rest * math.log(rest / 1e-6)


def test_a_tie_for_the_first_place_goes_to_the_smaller_token():
    told = TruncatedLogProbs(
        torch.tensor([[3, 2, 0]]),
        torch.tensor([[-1.0, -1.0, -0.1]], dtype=torch.float64),
        torch.tensor([[True, True, False]]),  # the third is filling
        torch.tensor([-1.0], dtype=torch.float64),
    )
    base = torch.tensor([[0.0, 0.0, 1.0, 1.0]])
    assert compare_truncated(base, told, torch.tensor([2])).same_top1.tolist() == [True]
    base = torch.tensor([[0.0, 0.0, 1.0, 1.1]])
    assert compare_truncated(base, told, torch.tensor([2])).same_top1.tolist() == [False]


def test_windows_are_scored_as_logits_are(table_source, truncated_table, windows):
    base, target = table_source(), table_source(noise=0.5)
    seen = []
    exact = score_windows(
        table_source(noise=0.5, rows_per_chunk=99), table_source(rows_per_chunk=99), windows
    )
    bound = score_truncated(
        truncated_table(target, k=40), base, windows, on_window=lambda *done: seen.append(done)
    )
    np.testing.assert_allclose(bound.kld_sums, exact.kld_sums, rtol=1e-4)
    np.testing.assert_allclose(bound.log_ratio_sums, exact.log_ratio_sums, rtol=1e-4)
    assert seen == [(done + 1, 9) for done in range(9)]
    few = score_truncated(truncated_table(target, k=2), base, windows)
    assert bool((few.kld_sums < 0.9 * exact.kld_sums).all())


def test_scoring_stops_when_the_goal_is_reached(table_source, truncated_table, windows):
    seen = []

    class Goal:
        def is_reached(self, sums, counts):
            seen.append((sums, counts))
            return len(sums) == 4

    source = truncated_table(table_source(noise=0.5), k=5)
    scores = score_truncated(source, table_source(), windows, until=Goal())
    assert len(scores.statistics) == len(scores.windows.windows) == 4
    np.testing.assert_array_equal(seen[-1][0], scores.kld_sums)
    assert seen[-1][1].tolist() == [19, 9, 32, 1]


def test_a_window_that_is_too_long_is_refused(table_source, truncated_table, windows):
    source = truncated_table(table_source(), k=3, max_tokens=31)
    with pytest.raises(UsageError, match="at most 31 tokens at once, and the windows need 32"):
        score_truncated(source, table_source(), windows)
    with pytest.raises(UsageError, match="at most 30 tokens"):
        score_truncated(source, table_source(max_tokens=30), windows)


def test_a_token_that_the_base_lacks_is_refused(table_source, truncated_table, windows):
    small = table_source(vocab_size=39)
    with pytest.raises(UsageError, match="has a token 39, and its base a vocabulary of 39"):
        score_truncated(truncated_table(table_source(), k=40), small, windows)


def test_a_base_that_gives_nan_is_refused(table_source, truncated_table, windows):
    base = table_source()
    base.table[windows.windows[1].token_ids[-2]] = torch.nan
    with pytest.raises(ModelError, match="NaN or infinite"):
        score_truncated(truncated_table(table_source(), k=3), base, windows)


def test_the_two_kinds_of_sources_are_told_apart(table_source, truncated_table):
    assert not isinstance(table_source(), TruncatedSource)
    assert isinstance(truncated_table(table_source(), k=3), TruncatedSource)


def test_rows_are_cut_from_every_column(truncated):
    _, target, next_tokens = pair(1, 0.5)
    told = truncated(target, next_tokens, 3)
    part = told.rows(2, 5)
    for column in dataclasses.fields(told):
        assert torch.equal(getattr(part, column.name), getattr(told, column.name)[2:5])
