"""The sums per window that a record keeps, so that two records can be paired window by window."""

import math

import pytest

from llmopt.quality.options import QualityOptions
from llmopt.quality.scores import score_windows
from llmopt.quality.summary import summarize

COUNTS = (19, 10, 1, 7)


def test_the_windows_add_up_to_the_record(make_source, make_windows):
    windows = make_windows(num_windows=len(COUNTS), num_scored=COUNTS)
    base, target = make_source(), make_source(noise=0.5)
    scores = score_windows(target, base, windows)
    options = QualityOptions(num_resamples=500)
    record = summarize(scores, options, base_name=base.name, base_scheme=base.scheme)
    sums = record.window_sums
    assert tuple(window.num_tokens for window in sums) == COUNTS
    num_tokens = sum(COUNTS)
    assert sum(w.kld for w in sums) / num_tokens == pytest.approx(record.kld_mean)
    assert sum(w.num_same_top1 for w in sums) / num_tokens == pytest.approx(record.top1_agreement)
    log_ratio = sum(w.log_ratio for w in sums) / num_tokens
    assert math.exp(log_ratio) == pytest.approx(record.ppl_ratio)
    assert min(w.kld for w in sums) > 0
