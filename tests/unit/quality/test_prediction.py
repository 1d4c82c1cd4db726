import math

import pytest
import torch

from llmopt.errors import ModelError, UsageError
from llmopt.quality.measure import measure_quality
from llmopt.quality.options import QualityOptions
from llmopt.quality.prediction import measure_prediction

OPTIONS = QualityOptions(num_resamples=500)


def test_it_is_what_an_independent_computation_gives(make_source, make_windows) -> None:
    source, windows = make_source(), make_windows(num_scored=(19, 7, 1, 19, 12, 3), num_words=30)
    record = measure_prediction(source, windows, OPTIONS)
    nll = 0.0
    for window in windows.windows:
        table = source.model.table.double()
        for position in range(len(window.token_ids) - 1 - window.num_scored, 19):
            logits = table[window.token_ids[position]].clone()
            logits[window.token_ids[position]] += position / 100
            log_probs = torch.log_softmax(logits, dim=0)
            nll -= float(log_probs[window.token_ids[position + 1]])
    assert record.num_tokens == 61
    assert record.perplexity.ppl == pytest.approx(math.exp(nll / 61), rel=1e-6)
    assert record.perplexity.word_ppl == pytest.approx(math.exp(nll / 30), rel=1e-6)
    assert record.perplexity.bits_per_byte == pytest.approx(nll / math.log(2) / 183, rel=1e-6)
    assert (record.model_name, record.model_scheme) == ("tiny", "fp32")
    assert (record.protocol_name, record.protocol) == ("windows", "some windows")


def test_it_is_what_a_comparison_says_of_the_same_model(make_source, make_windows) -> None:
    source, windows = make_source(noise=0.3), make_windows()
    alone = measure_prediction(source, windows, OPTIONS)
    compared = measure_quality(source, make_source(), windows, OPTIONS)
    assert alone.perplexity.ppl == pytest.approx(compared.ppl, rel=1e-6)
    assert alone.perplexity.ppl_ci == pytest.approx(compared.ppl_ci, rel=1e-6)
    assert alone.perplexity.bits_per_byte == pytest.approx(compared.bits_per_byte, rel=1e-6)


def test_every_window_is_heard_of(make_source, make_windows) -> None:
    heard = []
    measure_prediction(
        make_source(), make_windows(), OPTIONS, lambda *progress: heard.append(progress)
    )
    assert heard == [(done, 6) for done in range(1, 7)]


def test_windows_that_the_model_cannot_read_are_refused(make_source, make_windows) -> None:
    with pytest.raises(UsageError, match=r"reads at most 18 tokens at once, .* need 19"):
        measure_prediction(make_source(max_model_len=18), make_windows(), OPTIONS)


def test_a_last_token_beyond_the_limit_changes_nothing(make_source, make_windows) -> None:
    """Windows of `rolling` hold one token more than the model reads: the last, only scored."""
    windows = make_windows(num_scored=(19, 7, 1, 19, 19, 19))
    found = measure_prediction(make_source(max_model_len=19), windows, OPTIONS)
    assert found == measure_prediction(make_source(max_model_len=20), windows, OPTIONS)


def test_broken_weights_are_told(make_source, make_windows) -> None:
    source = make_source()
    source.model.table[7] = float("nan")
    with pytest.raises(ModelError, match="'tiny' gives NaN or infinite logits in window"):
        measure_prediction(source, make_windows(), OPTIONS)
