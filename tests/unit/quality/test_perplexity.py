import math
from dataclasses import replace

import numpy as np
import pytest

from llmopt.errors import ModelError
from llmopt.quality.options import QualityOptions
from llmopt.quality.perplexity import from_nats, perplexity


def test_per_token_per_byte_and_per_word(make_windows):
    windows = make_windows(2, num_scored=(19, 1), num_words=4)
    found = perplexity(np.array([38.0, 4.0]), windows, QualityOptions(num_resamples=500))
    assert found.ppl == pytest.approx(math.exp(42 / 20))
    assert found.ppl_ci == pytest.approx((math.exp(2), math.exp(4)))
    assert found.bits_per_byte == pytest.approx(42 / math.log(2) / 60)
    assert found.word_ppl == pytest.approx(math.exp(42 / 4))


def test_what_is_not_counted_is_not_given(make_windows):
    windows = make_windows(2)
    unknown = replace(windows, windows=tuple(replace(w, num_bytes=0) for w in windows.windows))
    found = perplexity(np.array([38.0, 40.0]), unknown, QualityOptions(num_resamples=500))
    assert (found.bits_per_byte, found.word_ppl) == (None, None)


def test_a_perplexity_beyond_all_numbers_is_refused():
    assert from_nats(2.0) == math.exp(2)
    with pytest.raises(ModelError, match="wrong by 800 nats per token"):
        from_nats(800.0)
