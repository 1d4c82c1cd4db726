import math

import numpy as np
import pytest
import torch
from scipy.special import log_softmax

from llmopt.errors import ModelError, UsageError
from llmopt.quality import logits
from llmopt.quality.logits import BaseLogits
from llmopt.quality.measure import measure_quality
from llmopt.quality.options import QualityOptions

OPTIONS = QualityOptions(text="sample.txt", window=20, num_windows=6, num_resamples=500)


def base_of(model, windows, **settings):
    return BaseLogits(model, windows, name="tiny", scheme="fp32", **settings)


def float64_statistics(base, target, windows):
    """Per-token KLD, top-1 agreement and log-probabilities, the long way round in NumPy."""
    columns = ([], [], [], [])
    for token_ids in windows.token_ids:
        hidden = torch.stack([token_ids, torch.arange(len(token_ids))], dim=1)[:-1]
        p = log_softmax(base.compute_logits(hidden).double().numpy(), axis=1)
        q = log_softmax(target.compute_logits(hidden).double().numpy(), axis=1)
        rows, following = np.arange(len(hidden)), token_ids[1:].numpy()
        columns[0].append((np.exp(p) * (p - q)).sum(axis=1))
        columns[1].append(p.argmax(axis=1) == q.argmax(axis=1))
        columns[2].append(p[rows, following])
        columns[3].append(q[rows, following])
    return [np.concatenate(column) for column in columns]


@pytest.mark.parametrize("chunk_elements", [50, 350, 1 << 23])
def test_record_equals_the_long_way_round(make_model, make_windows, monkeypatch, chunk_elements):
    monkeypatch.setattr(logits, "CHUNK_ELEMENTS", chunk_elements)
    base, target, windows = make_model(), make_model(noise=0.5), make_windows()
    record = measure_quality(target, base_of(base, windows), OPTIONS)
    kld, same, base_log_prob, target_log_prob = float64_statistics(base, target, windows)
    assert record.num_tokens == 6 * 19
    assert record.kld_mean == pytest.approx(kld.mean(), rel=1e-5)
    assert record.kld_median == pytest.approx(np.median(kld), rel=1e-5)
    assert record.kld_p99 == pytest.approx(np.percentile(kld, 99), rel=1e-5)
    assert record.kld_max == pytest.approx(kld.max(), rel=1e-5)
    assert record.top1_agreement == pytest.approx(same.mean())
    assert record.ppl == pytest.approx(np.exp(-target_log_prob.mean()), rel=1e-6)
    assert record.base_ppl == pytest.approx(np.exp(-base_log_prob.mean()), rel=1e-6)
    assert record.ppl_ratio == pytest.approx(record.ppl / record.base_ppl, rel=1e-9)
    assert 0 < same.mean() < 1


def test_record_carries_where_it_came_from(make_model, make_windows):
    record = measure_quality(make_model(), base_of(make_model(), make_windows()), OPTIONS)
    assert (record.base_name, record.base_scheme) == ("tiny", "fp32")
    assert (record.text_name, record.text_sha256) == ("sample.txt", "0" * 64)
    assert (record.protocol, record.window, record.num_windows) == ("some windows", 20, 6)
    assert record.confidence == 0.95


def test_a_model_against_itself_has_lost_nothing(make_model, make_windows):
    record = measure_quality(make_model(), base_of(make_model(), make_windows()), OPTIONS)
    assert (record.kld_mean, record.kld_mean_ci, record.kld_max) == (0.0, (0.0, 0.0), 0.0)
    assert (record.top1_agreement, record.top1_agreement_ci) == (1.0, (1.0, 1.0))
    assert (record.ppl_ratio, record.ppl_ratio_ci) == (1.0, (1.0, 1.0))
    assert record.ppl == record.base_ppl


def test_intervals_hold_their_estimates(make_model, make_windows):
    target, base = make_model(noise=0.3), base_of(make_model(), make_windows())
    record = measure_quality(target, base, OPTIONS)
    for estimate, (low, high) in [
        (record.kld_mean, record.kld_mean_ci),
        (record.top1_agreement, record.top1_agreement_ci),
        (record.ppl_ratio, record.ppl_ratio_ci),
    ]:
        assert low < estimate < high
    wide = measure_quality(
        target, base, QualityOptions("sample.txt", 20, 6, confidence=0.99, num_resamples=500)
    )
    assert np.diff(wide.kld_mean_ci) > np.diff(record.kld_mean_ci)
    assert wide.confidence == 0.99


def test_the_ratio_is_paired(make_model, make_windows):
    """The windows differ far more than the models: only pairing makes the interval this tight."""
    base = base_of(make_model(), make_windows())
    record = measure_quality(make_model(noise=0.01), base, OPTIONS)
    low, high = record.ppl_ratio_ci
    assert high - low < 0.02
    assert abs(record.ppl_ratio - 1) < 0.01


def test_more_noise_loses_more(make_model, make_windows):
    base = base_of(make_model(), make_windows())
    records = [measure_quality(make_model(noise=n), base, OPTIONS) for n in (0.05, 0.2, 0.8)]
    losses = [record.kld_mean for record in records]
    assert losses == sorted(losses)
    assert losses[0] > 0
    agreements = [record.top1_agreement for record in records]
    assert agreements == sorted(agreements, reverse=True)


def test_the_base_is_computed_once_for_several_targets(make_model, make_windows):
    model = make_model()
    base = base_of(model, make_windows())
    first = measure_quality(make_model(noise=0.3), base, OPTIONS)
    assert first == measure_quality(make_model(noise=0.3), base, OPTIONS)
    assert model.calls == 6
    uncached = base_of(model, base.windows, max_cache_bytes=0)
    assert first == measure_quality(make_model(noise=0.3), uncached, OPTIONS)


def test_a_target_in_another_dtype_is_compared(make_model, make_windows):
    base = base_of(make_model(), make_windows())
    record = measure_quality(make_model(dtype=torch.bfloat16), base, OPTIONS)
    assert 1e-7 < record.kld_mean < 1e-3


def test_hears_of_every_window(make_model, make_windows):
    heard = []
    base = base_of(make_model(), make_windows())
    measure_quality(make_model(), base, OPTIONS, lambda *progress: heard.append(progress))
    assert heard == [(done, 6) for done in range(1, 7)]


def test_models_that_do_not_fit_together_are_refused(make_model, make_windows):
    base = base_of(make_model(), make_windows())
    with pytest.raises(UsageError, match=r"51 tokens.*one of 50"):
        measure_quality(make_model(vocab_size=51), base, OPTIONS)
    with pytest.raises(UsageError, match="at most 19"):
        measure_quality(make_model(max_model_len=19), base, OPTIONS)


def test_broken_models_are_named(make_model, make_windows):
    windows, healthy, broken = make_windows(), make_model(), make_model()
    broken.table[windows.token_ids[3, 4]] = math.nan
    with pytest.raises(ModelError, match="the model gives NaN or infinite logits in window"):
        measure_quality(broken, base_of(healthy, windows), OPTIONS)
    with pytest.raises(ModelError, match="the base 'tiny' gives NaN"):
        measure_quality(healthy, base_of(broken, windows), OPTIONS)


def test_a_perplexity_beyond_all_numbers_is_refused(make_model, make_windows):
    hopeless = make_model()
    hopeless.table *= 1e4
    with pytest.raises(ModelError, match="nats per token"):
        measure_quality(hopeless, base_of(make_model(), make_windows()), OPTIONS)


def test_other_options_than_the_windows_were_made_with_are_our_own_mistake(
    make_model, make_windows
):
    base = base_of(make_model(), make_windows())
    with pytest.raises(AssertionError, match="other options"):
        measure_quality(make_model(), base, QualityOptions(window=20, num_windows=5))
