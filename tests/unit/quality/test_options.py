import pytest

from llmopt.errors import UsageError
from llmopt.quality.options import QualityOptions


def test_defaults_are_usable():
    options = QualityOptions()
    assert (options.text, options.window, options.num_windows) == ("bundled", 512, 16)


@pytest.mark.parametrize(
    ("wrong", "named"),
    [
        ({"window": 1}, "window of 1 tokens"),
        ({"num_windows": 1}, "1 windows"),
        ({"num_windows": -3}, "-3 windows"),
        ({"confidence": 1.0}, "confidence is 1.0"),
        ({"confidence": float("nan")}, "confidence is nan"),
        ({"num_resamples": 5}, "5 bootstrap resamples"),
    ],
)
def test_impossible_options_are_refused(wrong, named):
    with pytest.raises(UsageError, match=named) as caught:
        QualityOptions(**wrong)
    assert "Choose" in caught.value.remedy
