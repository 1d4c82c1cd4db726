import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from llmopt.quality.bootstrap import ratio_interval
from llmopt.quality.noise import NoiseScores, measure_noise, noise_dtype, noise_floor, verdict
from llmopt.quality.options import QualityOptions
from llmopt.quality.scores import score_windows
from llmopt.quality.summary import summarize

OPTIONS = QualityOptions(num_resamples=500)


@pytest.fixture
def windows(make_windows):
    return make_windows(12)


@pytest.fixture
def noise(make_source, windows):
    return measure_noise(make_source(scheme="bf16", dtype=torch.bfloat16), make_source(), windows)


def judge(scores, noise):
    record = summarize(scores, OPTIONS, base_name="tiny", base_scheme="fp32", noise=noise)
    assert record.verdict == verdict(scores, record.ppl_ratio_ci, noise, OPTIONS)
    return record


@pytest.mark.parametrize(
    ("served", "compute", "expected"),
    [
        ("bfloat16", "float32", "bfloat16"),
        ("float16", "float32", "float16"),
        ("float32", "float32", "bfloat16"),
        ("bfloat16", "bfloat16", None),
        ("float32", "float16", None),
    ],
)
def test_the_noise_is_of_the_dtype_that_the_base_is_served_in(served, compute, expected):
    assert noise_dtype(served, compute) == expected


def test_the_floor_is_the_16_bit_base_against_the_base(make_source, windows, noise):
    scores = score_windows(make_source(dtype=torch.bfloat16), make_source(), windows)
    assert noise.scheme == "bf16"
    assert noise.kld_sums.tolist() == scores.kld_sums.tolist()
    floor = noise_floor(noise, OPTIONS)
    record = summarize(scores, OPTIONS, base_name="tiny", base_scheme="fp32")
    assert floor.kld_mean == pytest.approx(record.kld_mean)
    assert floor.kld_mean_ci == record.kld_mean_ci
    assert floor.ppl_ratio == pytest.approx(record.ppl_ratio)
    assert floor.ppl_ratio_ci == record.ppl_ratio_ci
    assert 0 < floor.kld_mean < 1e-3


def test_a_model_against_itself_is_indistinguishable(make_source, windows, noise):
    found = judge(score_windows(make_source(), make_source(), windows), noise)
    assert found.verdict.label == "indistinguishable"
    assert (found.verdict.times_noise, found.verdict.times_noise_ci) == (0.0, (0.0, 0.0))
    assert found.verdict.text.startswith("Indistinguishable from the base")


def test_the_noise_itself_is_once_the_noise(make_source, windows, noise):
    scores = score_windows(make_source(dtype=torch.bfloat16), make_source(), windows)
    found = judge(scores, noise).verdict
    assert (found.label, found.times_noise, found.times_noise_ci) == (
        "indistinguishable",
        1.0,
        (1.0, 1.0),
    )


def test_damage_is_worse_with_its_evidence(make_source, windows, noise):
    base = make_source()
    damaged = make_source()
    damaged.model.table *= 2.0  # twice as sure of what is no more often right
    found = judge(score_windows(damaged, base, windows), noise)
    assert found.verdict.label == "worse"
    assert "lies above the noise's" in found.verdict.text
    assert found.verdict.times_noise == pytest.approx(found.kld_mean / found.noise.kld_mean)
    low, high = found.verdict.times_noise_ci
    assert 1 < low < found.verdict.times_noise < high


def scores_of(kld, log_ratio, make_source, windows):
    """Scores with these means in every window, times 1 to 1.11."""
    scores = score_windows(make_source(), make_source(), windows)
    statistics = []
    for index, window in enumerate(scores.statistics):
        factor = 1 + index / 100
        statistics.append(
            replace(
                window,
                kld=torch.full_like(window.kld, kld * factor),
                target_log_prob=window.base_log_prob - log_ratio * factor,
            )
        )
    return replace(scores, statistics=tuple(statistics))


@pytest.mark.parametrize(
    ("kld", "log_ratio", "label"),
    [
        (0.5e-3, 0.5, "indistinguishable"),  # less divergence than noise: no evidence of loss
        (3e-3, 0.2, "worse"),
        (3e-3, 0.01, "above noise"),  # a loss, but not beyond the noise's own
        (3e-3, 0.0, "above noise"),
        (3e-3, -0.2, "above noise"),  # other predictions, and better ones
    ],
)
def test_worse_takes_both_more_divergence_and_more_perplexity(
    make_source, windows, kld, log_ratio, label
):
    noise = NoiseScores.from_scores(scores_of(1e-3, 0.02, make_source, windows), "bf16")
    found = judge(scores_of(kld, log_ratio, make_source, windows), noise)
    assert found.verdict.label == label
    assert found.verdict.times_noise == pytest.approx(kld / 1e-3)
    assert f"{kld / 1e-3:.3g} times the noise of bf16" in found.verdict.text


def test_noise_that_helps_does_not_lower_the_bar(make_source, windows):
    """A noise run with better perplexity: a target between it and the base is not worse."""
    noise = NoiseScores.from_scores(scores_of(1e-3, -0.1, make_source, windows), "bf16")
    found = judge(scores_of(3e-3, -0.05, make_source, windows), noise)
    assert found.verdict.label == "above noise"


def windowed(make_source, windows, klds, log_ratios):
    """Scores whose windows have these means."""
    scores = scores_of(1.0, 0.0, make_source, windows)
    statistics = tuple(
        replace(
            window,
            kld=torch.full_like(window.kld, kld),
            target_log_prob=window.base_log_prob - log_ratio,
        )
        for window, kld, log_ratio in zip(scores.statistics, klds, log_ratios, strict=True)
    )
    return replace(scores, statistics=statistics)


def test_more_divergence_on_average_is_no_evidence_when_windows_disagree(make_source, windows):
    noise = NoiseScores.from_scores(scores_of(1e-3, 0.0, make_source, windows), "bf16")
    klds = [0.2e-3] * 9 + [6e-3] * 3
    found = judge(windowed(make_source, windows, klds, [0.5] * 12), noise).verdict
    assert found.label == "indistinguishable"
    assert found.times_noise_ci[0] < 1 < found.times_noise


def test_a_perplexity_that_may_have_risen_is_not_yet_worse(make_source, windows):
    noise = NoiseScores.from_scores(scores_of(1e-3, 0.0, make_source, windows), "bf16")
    log_ratios = [0.3, -0.1] * 6
    record = judge(windowed(make_source, windows, [3e-3] * 12, log_ratios), noise)
    assert record.ppl_ratio_ci[0] < 1 < record.ppl_ratio < record.ppl_ratio_ci[1]
    assert record.verdict.label == "above noise"


def test_target_and_noise_are_drawn_together(make_source, windows):
    """Windows differ tenfold in both alike: the ratio is sure, neither mean is."""
    factors = np.linspace(1, 10, 12)
    base = scores_of(1e-3, 0.0, make_source, windows)

    def scaled(by):
        statistics = tuple(
            replace(window, kld=torch.full_like(window.kld, by * factor))
            for window, factor in zip(base.statistics, factors, strict=True)
        )
        return replace(base, statistics=statistics)

    noise = NoiseScores.from_scores(scaled(1e-3), "bf16")
    low, high = judge(scaled(2e-3), noise).verdict.times_noise_ci
    assert (low, high) == pytest.approx((2.0, 2.0))


def test_a_target_that_stopped_early_is_judged_on_its_windows(make_source, windows, noise):
    scores = score_windows(make_source(noise=0.1), make_source(), windows.first(5))
    record = summarize(scores, OPTIONS, base_name="tiny", base_scheme="fp32", noise=noise)
    assert record.verdict.times_noise == pytest.approx(
        scores.kld_sums.sum() / noise.kld_sums[:5].sum()
    )
    assert record.verdict.times_noise_ci == ratio_interval(
        scores.kld_sums, noise.kld_sums[:5], num_resamples=500
    )
    with pytest.raises(AssertionError, match="fewer windows"):
        noise.first(13)


def test_any_loss_is_beyond_no_noise_at_all(make_source, windows):
    silent = NoiseScores.from_scores(score_windows(make_source(), make_source(), windows), "fp32")
    found = judge(score_windows(make_source(noise=0.1), make_source(), windows), silent).verdict
    assert found.label in ("above noise", "worse")
    assert found.times_noise == math.inf
    same = judge(score_windows(make_source(), make_source(), windows), silent).verdict
    assert same.label == "indistinguishable"
