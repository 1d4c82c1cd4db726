import pytest
import torch

from llmopt.quality.base_logits import KeptLogits
from llmopt.quality.measure import measure_quality
from llmopt.quality.noise import measure_noise
from llmopt.quality.options import QualityOptions
from llmopt.quality.scores import score_windows
from llmopt.quality.summary import summarize

OPTIONS = QualityOptions(num_resamples=500)


def test_is_the_summary_of_the_scores(make_source, make_windows):
    base, target, windows = make_source("big", "fp32"), make_source(noise=0.3), make_windows()
    noise = measure_noise(make_source(dtype=torch.bfloat16), base, windows)
    heard = []
    record = measure_quality(
        target, base, windows, OPTIONS, noise=noise, on_window=lambda *p: heard.append(p)
    )
    assert heard[-1] == (6, 6)
    scores = score_windows(target, base, windows)
    assert record == summarize(scores, OPTIONS, base_name="big", base_scheme="fp32", noise=noise)
    assert record.verdict is not None


def test_more_noise_loses_more(make_source, make_windows):
    base, windows = KeptLogits(make_source()), make_windows()
    records = [
        measure_quality(make_source(noise=n), base, windows, OPTIONS) for n in (0.05, 0.2, 0.8)
    ]
    losses = [record.kld_mean for record in records]
    assert losses == sorted(losses)
    assert losses[0] > 0
    agreements = [record.top1_agreement for record in records]
    assert agreements == sorted(agreements, reverse=True)


def test_the_base_is_computed_once_for_several_targets(make_source, make_windows):
    source, windows = make_source(), make_windows()
    base = KeptLogits(source)
    first = measure_quality(make_source(noise=0.3), base, windows, OPTIONS)
    assert first == measure_quality(make_source(noise=0.3), base, windows, OPTIONS)
    assert source.model.calls == 6


def test_a_model_in_bfloat16_is_close_to_itself(make_source, make_windows):
    record = measure_quality(
        make_source(dtype=torch.bfloat16), make_source(), make_windows(), OPTIONS
    )
    assert 1e-7 < record.kld_mean < 1e-3


def test_ends_when_the_interval_is_as_narrow_as_asked(make_source, make_windows):
    options = QualityOptions(num_resamples=500, until_ci=0.07)
    windows, target = make_windows(40), make_source(noise=0.4)
    record = measure_quality(target, make_source(), windows, options)
    assert 16 < record.num_windows < 40
    low, high = record.kld_mean_ci
    assert (high - low) / 2 == pytest.approx(0.07 * record.kld_mean, rel=0.25)
