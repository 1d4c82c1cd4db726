"""Paired accuracies against scipy, a plain bootstrap, and simulated truth."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binomtest

from llmopt.quality.tasks.paired import compare_answers, difference_interval, mcnemar_p

counts = st.integers(0, 60)


def answers(both: int, lost: int, gained: int, neither: int) -> tuple[list[bool], list[bool]]:
    base = [True] * (both + lost) + [False] * (gained + neither)
    target = [True] * both + [False] * lost + [True] * gained + [False] * neither
    return base, target


@given(counts, counts)
def test_mcnemar_is_the_exact_binomial_test(lost, gained):
    expected = 1.0 if lost + gained == 0 else binomtest(lost, lost + gained, 0.5).pvalue
    assert mcnemar_p(lost, gained) == pytest.approx(expected, rel=1e-9)


def test_mcnemar_of_very_many_flips():
    assert mcnemar_p(2100, 1900) == pytest.approx(binomtest(2100, 4000).pvalue, rel=1e-9)
    assert mcnemar_p(3000, 0) == 0.0  # below the smallest float, and no overflow


@given(counts, counts, counts, counts)
def test_counts_add_up(both, lost, gained, neither):
    if both + lost + gained + neither == 0:
        return
    base, target = answers(both, lost, gained, neither)
    paired = compare_answers("acc", base, target, num_resamples=200)
    num_items = both + lost + gained + neither
    assert (paired.num_lost, paired.num_gained) == (lost, gained)
    assert paired.base == (both + lost) / num_items
    assert paired.target - paired.base == pytest.approx(paired.difference)
    assert paired.flip_share == (lost + gained) / num_items
    assert -1 <= paired.difference_ci[0] <= paired.difference_ci[1] <= 1


def test_flips_are_told_by_their_direction():
    paired = compare_answers("acc", [True, True, False], [True, False, False])
    assert (paired.num_lost, paired.num_gained, paired.difference) == (1, 0, -1 / 3)


def test_the_interval_is_that_of_a_bootstrap_over_items():
    generator = np.random.default_rng(1)
    differences = np.repeat([-1.0, 1.0, 0.0], [60, 20, 920])
    means = generator.choice(differences, size=(4000, 1000)).mean(axis=1)
    plain = np.quantile(means, [0.025, 0.975])
    assert difference_interval(60, 20, 1000) == pytest.approx(plain, abs=0.002)


@pytest.mark.parametrize(
    ("num_items", "lost", "gained"),
    [(100, 0.03, 0.01), (100, 0.15, 0.05), (400, 0.02, 0.02), (1000, 0.06, 0.04), (50, 0.1, 0.1)],
)
def test_coverage_of_the_interval(num_items, lost, gained):
    """Of 95 % intervals of simulated models, 92 to 97 % hold the true difference.

    The plain bootstrap's hold it in 90 % of the first case, which has 4 flips on average.
    """
    draws = np.random.default_rng(2).multinomial(
        num_items, [lost, gained, 1 - lost - gained], size=1500
    )
    kinds, repeats = np.unique(draws[:, :2], axis=0, return_counts=True)
    held = 0
    for (num_lost, num_gained), repeat in zip(kinds, repeats, strict=True):
        low, high = difference_interval(
            int(num_lost), int(num_gained), num_items, num_resamples=2000
        )
        held += repeat * (low <= gained - lost <= high)
    assert 0.92 <= held / len(draws) <= 0.975


def test_no_flips_still_leave_doubt():
    low, high = difference_interval(0, 0, 100)
    assert low < 0 < high
    assert compare_answers("acc", [True] * 100, [True] * 100).judgement == "same"


@pytest.mark.parametrize(
    ("lost", "gained", "judgement", "text"),
    [
        (0, 0, "same", "not one item changed"),
        (6, 4, "noise", "the difference is within noise (-1.0 points ["),
        (5, 0, "noise", "the difference is within noise"),  # p = 0.06, however one-sided
        (40, 10, "lost", "lost 15.0 points (-15.0 points ["),
        (10, 40, "gained", "gained 15.0 points (+15.0 points ["),
    ],
)
def test_the_sentence(lost, gained, judgement, text):
    paired = compare_answers("acc", *answers(100, lost, gained, 100 - lost - gained))
    assert paired.judgement == judgement
    assert paired.text.startswith(text)
    if judgement != "same":
        evidence = f"{lost} lost and {gained} gained of 200, p = {paired.p_value:.2g})"
        assert paired.text.endswith(evidence)


def test_confidence_decides_where_noise_ends():
    base, target = answers(100, 8, 1, 91)  # p = 0.039
    assert compare_answers("acc", base, target).judgement == "lost"
    assert compare_answers("acc", base, target, confidence=0.99).judgement == "noise"


def test_equal_models_are_rarely_called_different():
    """Where both directions are equally likely, at most 5 % of comparisons find a difference."""
    draws = np.random.default_rng(3).multinomial(300, [0.05, 0.05, 0.9], size=800)
    found = 0
    for lost, gained, _ in draws.tolist():
        paired = compare_answers(
            "acc", *answers(150, lost, gained, 150 - lost - gained), num_resamples=500
        )
        found += paired.judgement in ("lost", "gained")
    assert found / len(draws) <= 0.05
