"""Every number of the record against NumPy and SciPy in float64, from the logits on."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.special import log_softmax, rel_entr

from llmopt.errors import ModelError
from llmopt.quality.bootstrap import ratio_interval
from llmopt.quality.options import QualityOptions
from llmopt.quality.scores import score_windows
from llmopt.quality.summary import _by_confidence, summarize

OPTIONS = QualityOptions(num_resamples=500)
COUNTS = (19, 10, 19, 1, 19, 7)


@pytest.fixture
def windows(make_windows):
    return make_windows(num_scored=COUNTS, num_words=31)


def measure(target, base, windows, options=OPTIONS):
    scores = score_windows(target, base, windows)
    return summarize(scores, options, base_name=base.name, base_scheme=base.scheme)


def float64_columns(base, target, windows):
    """Per token: KLD, agreement, both log-probabilities, confidence, position; and its window."""
    rows = []
    for index, window in enumerate(windows.windows):
        hidden = torch.stack([window.token_ids, torch.arange(20)], dim=1)
        p = log_softmax(base.model.compute_logits(hidden).double().numpy(), axis=1)
        q = log_softmax(target.model.compute_logits(hidden).double().numpy(), axis=1)
        for position in range(20 - window.num_scored, 20):
            a, b = p[position - 1], q[position - 1]
            token = int(window.token_ids[position])
            kld = rel_entr(np.exp(a), np.exp(b)).sum()
            same = a.argmax() == b.argmax()
            rows.append((kld, same, a[token], b[token], np.exp(a.max()), position, index))
    return [np.array(column) for column in zip(*rows, strict=True)]


def test_every_number_equals_the_long_way_round(make_source, windows):
    base, target = make_source(), make_source(noise=0.5)
    record = measure(target, base, windows)
    kld, same, p, q, _, _, _ = float64_columns(base, target, windows)
    expected = {
        "num_tokens": 75,
        "kld_mean": kld.mean(),
        "kld_median": np.median(kld),
        "kld_p90": np.percentile(kld, 90),
        "kld_p99": np.percentile(kld, 99),
        "kld_p999": np.percentile(kld, 99.9),
        "kld_max": kld.max(),
        "top1_agreement": same.mean(),
        "ppl": np.exp(-q.mean()),
        "base_ppl": np.exp(-p.mean()),
        "ppl_ratio": np.exp((p - q).mean()),
        "bits_per_byte": -q.sum() / math.log(2) / (3 * 75),
        "base_bits_per_byte": -p.sum() / math.log(2) / (3 * 75),
        "word_ppl": np.exp(-q.sum() / 31),
        "base_word_ppl": np.exp(-p.sum() / 31),
    }
    for name, value in expected.items():
        assert getattr(record, name) == pytest.approx(value, rel=2e-5), name
    change = np.exp(q) - np.exp(p)
    assert record.delta_p.mean == pytest.approx(change.mean(), rel=1e-4)
    assert record.delta_p.rms == pytest.approx(np.sqrt((change**2).mean()), rel=1e-5)
    for percent in (1, 5, 25, 50, 75, 95, 99):
        own = getattr(record.delta_p, f"p{percent:02}")
        assert own == pytest.approx(np.percentile(change, percent), rel=1e-3, abs=1e-7)
    assert 0 < same.mean() < 1


def test_intervals_are_of_sums_over_windows(make_source, windows):
    base, target = make_source(), make_source(noise=0.5)
    record = measure(target, base, windows)
    kld, same, p, q, _, _, index = float64_columns(base, target, windows)

    def interval(values):
        sums = np.bincount(index.astype(int), weights=values)
        return ratio_interval(sums, np.array(COUNTS, dtype=float), num_resamples=500)

    for own, expected in [
        (record.kld_mean_ci, interval(kld)),
        (record.top1_agreement_ci, interval(same)),
        (record.delta_p.mean_ci, interval(np.exp(q) - np.exp(p))),
        (record.ppl_ratio_ci, np.exp(interval(p - q))),
        (record.ppl_ci, np.exp(interval(-q))),
        (record.base_ppl_ci, np.exp(interval(-p))),
    ]:
        assert own == pytest.approx(tuple(expected), rel=1e-4)
        assert own[0] < own[1]


def test_buckets_divide_the_tokens(make_source, windows):
    base, target = make_source(), make_source(noise=0.5)
    record = measure(target, base, windows)
    kld, same, _, _, confidence, _, _ = float64_columns(base, target, windows)
    edges = {
        "< 0.25": (0, 0.25),
        "0.25–0.5": (0.25, 0.5),
        "0.5–0.75": (0.5, 0.75),
        "0.75–0.9": (0.75, 0.9),
        "0.9–0.99": (0.9, 0.99),
        "≥ 0.99": (0.99, 2),
    }
    assert sum(bucket.num_tokens for bucket in record.by_confidence) == 75
    assert len(record.by_confidence) >= 4
    for bucket in record.by_confidence:
        low, high = edges[bucket.label]
        members = (confidence >= low) & (confidence < high)
        assert bucket.num_tokens == members.sum() > 0
        assert bucket.kld_mean == pytest.approx(kld[members].mean(), rel=1e-4)
        assert bucket.top1_agreement == pytest.approx(same[members].mean())


def test_a_bucket_holds_its_lower_edge(make_source, make_windows):
    """Two tokens of equal probability and no others: the confidence is exactly 0.5."""
    base = make_source()
    base.model.table.fill_(-1e4)
    base.model.table[:, :2] = 100.0
    windows = make_windows()
    tokens = torch.randint(2, 50, (6, 20), generator=torch.Generator().manual_seed(0))
    rows = [
        replace(window, token_ids=row) for window, row in zip(windows.windows, tokens, strict=True)
    ]
    scores = score_windows(base, base, replace(windows, windows=tuple(rows)))
    assert bool((scores.statistics[0].base_confidence == 0.5).all())
    buckets = _by_confidence(scores.statistics[0])
    assert [(bucket.label, bucket.num_tokens) for bucket in buckets] == [("0.5–0.75", 19)]


def test_positions_count_the_tokens_before(make_source, make_windows):
    base = make_source(max_model_len=200)
    target = make_source(max_model_len=200, noise=0.3)
    record = measure(target, base, make_windows(2, window=150, num_scored=(149, 60)))
    buckets = {bucket.label: bucket.num_tokens for bucket in record.by_position}
    # the second window scores its tokens 90 to 149
    assert buckets == {"1–31": 31, "32–63": 32, "64–127": 64 + 38, "128–255": 22 + 22}
    means = [(bucket.kld_mean, bucket.num_tokens) for bucket in record.by_position]
    assert sum(m * n for m, n in means) / 209 == pytest.approx(record.kld_mean)
    late = measure(target, base, make_windows(2, window=150, num_scored=(20, 20)))
    assert [bucket.label for bucket in late.by_position] == ["128–255"]


def test_carries_where_it_came_from(make_source, make_windows):
    record = measure(make_source(), make_source("big", "bf16"), make_windows())
    assert (record.base_name, record.base_scheme) == ("big", "bf16")
    assert (record.text_name, record.text_sha256) == ("sample.txt", "0" * 64)
    assert (record.protocol_name, record.protocol) == ("windows", "some windows")
    assert (record.window, record.num_windows, record.confidence) == (20, 6, 0.95)
    assert (record.noise, record.verdict, record.base_cache_error) == (None, None, None)
    assert (record.word_ppl, record.source, record.lower_bound) == (None, "llmopt", False)


def test_a_model_against_itself_has_lost_nothing(make_source, make_windows):
    record = measure(make_source(), make_source(), make_windows())
    assert (record.kld_mean, record.kld_mean_ci, record.kld_max) == (0.0, (0.0, 0.0), 0.0)
    assert (record.top1_agreement, record.top1_agreement_ci) == (1.0, (1.0, 1.0))
    assert (record.ppl_ratio, record.ppl_ratio_ci) == (1.0, (1.0, 1.0))
    assert record.ppl == record.base_ppl
    assert (record.delta_p.mean, record.delta_p.rms, record.delta_p.p01) == (0.0, 0.0, 0.0)


def test_a_wider_confidence_is_a_wider_interval(make_source, make_windows):
    target, base, windows = make_source(noise=0.3), make_source(), make_windows()
    narrow = measure(target, base, windows)
    wide = measure(target, base, windows, QualityOptions(confidence=0.99, num_resamples=500))
    assert np.diff(wide.kld_mean_ci) > np.diff(narrow.kld_mean_ci)
    assert wide.confidence == 0.99


def test_the_ratio_is_paired(make_source, make_windows):
    """The windows differ far more than the models: only pairing makes the interval this tight."""
    record = measure(make_source(noise=0.01), make_source(), make_windows())
    assert np.diff(record.ppl_ratio_ci) < 0.02 < 0.1 * np.diff(record.ppl_ci)
    assert abs(record.ppl_ratio - 1) < 0.01


def test_a_perplexity_beyond_all_numbers_is_refused(make_source, make_windows):
    hopeless = make_source()
    hopeless.model.table *= 1e4
    with pytest.raises(ModelError, match="nats per token"):
        measure(hopeless, make_source(), make_windows())
