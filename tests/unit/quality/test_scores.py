import math

import numpy as np
import pytest
import torch

from llmopt.errors import ModelError, UsageError
from llmopt.quality.divergence import compare_logits
from llmopt.quality.scores import score_windows
from llmopt.quality.stopping import MIN_WINDOWS, PrecisionGoal


def test_statistics_are_of_the_scored_tokens_of_each_window(make_source, make_windows):
    windows = make_windows(3, num_scored=(19, 4, 1))
    base, target = make_source(), make_source(noise=0.4)
    scores = score_windows(target, base, windows)
    assert scores.windows is windows
    assert scores.num_scored.tolist() == [19, 4, 1]
    for window, statistics in zip(windows.windows, scores.statistics, strict=True):
        rows = [torch.cat(list(source.chunks(window))) for source in (base, target)]
        expected = compare_logits(*rows, window.next_tokens)
        assert torch.equal(statistics.kld, expected.kld)
        assert torch.equal(statistics.target_log_prob, expected.target_log_prob)
    last = scores.statistics[2]
    assert scores.kld_sums[2] == float(last.kld)
    assert scores.log_ratio_sums[2] == float(last.base_log_prob - last.target_log_prob)


def test_hears_of_every_window(make_source, make_windows):
    heard = []
    score_windows(
        make_source(), make_source(), make_windows(), on_window=lambda *p: heard.append(p)
    )
    assert heard == [(done, 6) for done in range(1, 7)]


def test_stops_once_the_interval_is_narrow(make_source, make_windows):
    windows = make_windows(40, num_words=100)
    target = make_source(noise=0.4)
    scores = score_windows(target, make_source(), windows, until=PrecisionGoal(0.15))
    count = len(scores.statistics)
    assert MIN_WINDOWS <= count < 40
    assert target.model.calls == count
    assert scores.windows.windows == windows.windows[:count]
    assert scores.windows.num_words is None
    sums = scores.kld_sums / scores.num_scored
    assert 1.9 * sums.std() / math.sqrt(count) <= 0.15 * sums.mean()
    hopeless = score_windows(target, make_source(), windows, until=PrecisionGoal(1e-4))
    assert len(hopeless.statistics) == 40


def test_models_that_do_not_fit_together_are_refused(make_source, make_windows):
    base, windows = make_source(), make_windows()
    with pytest.raises(UsageError, match=r"51 tokens.*one of 50"):
        score_windows(make_source(vocab_size=51), base, windows)
    for sources in [(make_source(max_model_len=18), base), (base, make_source(max_model_len=18))]:
        with pytest.raises(UsageError, match=r"at most 18 tokens.*windows need 19.*at most 18"):
            score_windows(*sources, windows)


def test_broken_models_are_named(make_source, make_windows):
    windows, healthy, broken = make_windows(), make_source("good"), make_source("bad")
    broken.model.table[windows.windows[0].token_ids[4]] = math.nan
    with pytest.raises(ModelError, match="the model 'bad' gives NaN or infinite logits in window"):
        score_windows(broken, healthy, windows)
    with pytest.raises(ModelError, match=r"the base 'bad' gives NaN.*window 1.*fetch it again"):
        score_windows(healthy, broken, windows)


def test_a_goal_is_a_relative_one(make_source, make_windows):
    sums = np.random.default_rng(0).normal(1.0, 0.1, size=30)
    counts = np.full(30, 7.0)
    goal = PrecisionGoal(0.05)
    assert goal.is_reached(sums, counts) == goal.is_reached(1000 * sums, counts)
