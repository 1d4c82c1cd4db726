import hashlib
from itertools import accumulate

import pytest

from llmopt.errors import UsageError
from llmopt.quality.options import QualityOptions
from llmopt.quality.text import load_windows


class CharTokenizer:
    """One token per character: its code point."""

    bos_token_id = None
    eos_token_id = 0

    def encode(self, text, add_special_tokens=True):
        return [*map(ord, text)]

    def encode_with_ends(self, text, add_special_tokens=True):
        return self.encode(text), [*accumulate(len(char.encode()) for char in text)]


@pytest.mark.parametrize(
    ("protocol", "told", "num_tokens", "num_words"),
    [
        ("windows", "all 9 next-token", 27, None),
        ("paper", "as GPTQ", 27, None),
        ("llama.cpp", "as llama.cpp", 12, None),
        ("rolling", "as lm-evaluation-harness", 38, 8),
    ],
)
def test_every_protocol_gives_windows_of_the_text(tmp_path, protocol, told, num_tokens, num_words):
    content = b"the quick brown fox jumps over the dog"
    (tmp_path / "sample.txt").write_bytes(content)
    options = QualityOptions(str(tmp_path / "sample.txt"), protocol, 10, None)
    windows = load_windows(CharTokenizer(), options)
    assert (windows.text_name, windows.protocol) == ("sample.txt", protocol)
    assert windows.text_sha256 == hashlib.sha256(content).hexdigest()
    assert told in windows.description
    assert windows.num_tokens == sum(window.num_bytes for window in windows.windows) == num_tokens
    assert windows.num_words == num_words


@pytest.mark.parametrize("protocol", ["windows", "paper", "llama.cpp", "rolling"])
def test_an_empty_text_is_refused(tmp_path, protocol):
    (tmp_path / "empty.txt").write_bytes(b"")
    options = QualityOptions(str(tmp_path / "empty.txt"), protocol, num_windows=None)
    with pytest.raises(UsageError, match=r"'empty\.txt' has 0 tokens.* 2\b") as caught:
        load_windows(CharTokenizer(), options)
    assert "longer text" in caught.value.remedy
