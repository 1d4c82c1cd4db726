import pytest

from llmopt.errors import UsageError
from llmopt.quality.options import QualityOptions


def test_defaults_are_usable():
    options = QualityOptions()
    assert (options.text, options.protocol, options.num_windows) == ("bundled", "windows", 16)
    assert (options.window, options.window_size) == (None, 512)


@pytest.mark.parametrize(
    ("protocol", "window"),
    [("windows", 512), ("paper", 2048), ("llama.cpp", 512), ("rolling", 2048)],
)
def test_each_protocol_has_a_window_of_its_own(protocol, window):
    assert QualityOptions(protocol=protocol).window_size == window
    assert QualityOptions(protocol=protocol, window=100).window_size == 100


def test_all_windows_and_stopping_early_can_be_asked_for():
    options = QualityOptions(num_windows=None, until_ci=0.05)
    assert (options.num_windows, options.until_ci) == (None, 0.05)


@pytest.mark.parametrize(
    ("wrong", "named"),
    [
        ({"protocol": "gptq"}, "no protocol 'gptq'"),
        ({"protocol": 512}, "no protocol 512"),
        ({"window": 1}, "window of 1 tokens"),
        ({"window": 2, "protocol": "llama.cpp"}, "window of 2 tokens"),
        ({"num_windows": 1}, "1 windows"),
        ({"num_windows": -3}, "-3 windows"),
        ({"until_ci": 0.0}, "0.0 of the mean"),
        ({"until_ci": 5.0}, "5.0 of the mean"),
        ({"until_ci": float("nan")}, "nan of the mean"),
        ({"confidence": 1.0}, "confidence is 1.0"),
        ({"confidence": float("nan")}, "confidence is nan"),
        ({"num_resamples": 5}, "5 bootstrap resamples"),
    ],
)
def test_impossible_options_are_refused(wrong, named):
    with pytest.raises(UsageError, match=named) as caught:
        QualityOptions(**wrong)
    assert "Choose" in caught.value.remedy


def test_the_smallest_windows_are_allowed():
    assert QualityOptions(window=2).window_size == 2
    assert QualityOptions(protocol="llama.cpp", window=3).window_size == 3
