import hashlib

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from llmopt.errors import UsageError
from llmopt.quality import text as text_module
from llmopt.quality.options import QualityOptions
from llmopt.quality.text import load_windows


class CharTokenizer:
    """One token per character: its code point. BOS (if any) is 1 and may be one that it adds."""

    def __init__(self, bos_token_id=None, adds_bos=False):
        self.bos_token_id = bos_token_id
        self.adds_bos = adds_bos

    def encode(self, text, add_special_tokens=True):
        special = [self.bos_token_id] if self.adds_bos and add_special_tokens else []
        return [*special, *map(ord, text)]


@pytest.fixture
def write(tmp_path):
    def write_file(content):
        path = tmp_path / "sample.txt"
        path.write_bytes(content)
        return str(path)

    return write_file


def test_windows_do_not_overlap_and_start_at_the_first_token(write):
    windows = load_windows(CharTokenizer(), QualityOptions(write(b"abcdefghijk"), 3, 3))
    assert windows.token_ids.tolist() == [list(b"abc"), list(b"def"), list(b"ghi")]
    assert windows.token_ids.dtype == torch.int64
    assert (windows.num_windows, windows.window) == (3, 3)


def test_bos_leads_every_window_if_the_tokenizer_adds_it(write):
    options = QualityOptions(write(b"abcdefgh"), 3, 3)
    windows = load_windows(CharTokenizer(1, adds_bos=True), options)
    assert windows.token_ids.tolist() == [[1, *b"ab"], [1, *b"cd"], [1, *b"ef"]]
    assert windows.protocol == (
        "windows of 3 tokens, not overlapping, BOS first in each,"
        " all 2 next-token positions scored, first 3"
    )


def test_a_bos_that_the_tokenizer_does_not_add_stays_out(write):
    windows = load_windows(CharTokenizer(1), QualityOptions(write(b"abcdef"), 3, 2))
    assert windows.token_ids.tolist() == [list(b"abc"), list(b"def")]
    assert "no BOS" in windows.protocol


@given(
    length=st.integers(0, 60),
    window=st.integers(2, 10),
    num_windows=st.integers(2, 8),
    adds_bos=st.booleans(),
)
@settings(
    max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_windows_put_together_are_the_beginning_of_the_text(
    write, length, window, num_windows, adds_bos
):
    content = bytes(97 + index % 26 for index in range(length))
    options = QualityOptions(write(content), window, num_windows)
    stride = window - adds_bos
    tokenizer = CharTokenizer(1, adds_bos)
    if length < num_windows * stride:
        with pytest.raises(UsageError, match=f"has {length} tokens.* need {num_windows * stride}"):
            load_windows(tokenizer, options)
        return
    token_ids = load_windows(tokenizer, options).token_ids
    assert token_ids.shape == (num_windows, window)
    assert token_ids[:, int(adds_bos) :].flatten().tolist() == list(content[: num_windows * stride])


@pytest.mark.parametrize(
    ("length", "remedy"), [(35, "at most 3 windows"), (19, "smaller windows"), (0, "longer text")]
)
def test_too_little_text_says_what_would_fit(write, length, remedy):
    with pytest.raises(UsageError, match=remedy):
        load_windows(CharTokenizer(), QualityOptions(write(b"x" * length), 10, 4))


def test_a_file_is_named_and_hashed(write):
    content = "naïve café " * 3
    windows = load_windows(CharTokenizer(), QualityOptions(write(content.encode()), 3, 2))
    assert windows.text_name == "sample.txt"
    assert windows.text_sha256 == hashlib.sha256(content.encode()).hexdigest()


def test_a_byte_order_mark_is_no_text(write):
    windows = load_windows(CharTokenizer(), QualityOptions(write(b"\xef\xbb\xbfabcd"), 2, 2))
    assert windows.token_ids.tolist() == [list(b"ab"), list(b"cd")]


def test_the_bundled_text_is_the_one_for_evaluation(monkeypatch):
    monkeypatch.setattr(text_module, "read_text", {"evaluation": "bundled words"}.__getitem__)
    windows = load_windows(CharTokenizer(), QualityOptions("bundled", 4, 2))
    assert windows.token_ids.tolist() == [list(b"bund"), list(b"led ")]
    assert windows.text_name == "bundled"
    assert windows.text_sha256 == hashlib.sha256(b"bundled words").hexdigest()


def test_unreadable_texts_are_refused(tmp_path):
    for path, reason in [
        (tmp_path / "missing.txt", "No such file"),
        (tmp_path, "directory"),
        ("nul\0byte", "null byte|null character"),
    ]:
        with pytest.raises(UsageError, match=reason) as caught:
            load_windows(CharTokenizer(), QualityOptions(str(path)))
        assert "bundled" in caught.value.remedy


def test_a_text_that_is_not_utf8_is_refused(write):
    with pytest.raises(UsageError, match=r"sample\.txt' is not UTF-8: byte 2 is 0xff"):
        load_windows(CharTokenizer(), QualityOptions(write(b"ab\xffcd"), 2, 2))
