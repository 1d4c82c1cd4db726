"""Each protocol scores what its own tool scores."""

from itertools import accumulate

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from llmopt.errors import ModelError, UsageError
from llmopt.quality.evaluation_text import EvaluationText
from llmopt.quality.options import QualityOptions
from llmopt.quality.protocols import PROTOCOLS
from llmopt.quality.rolling import roll

BOS = 1
WIKITEXT = " \n = A = \n \n so @-@ so . \n \n \n = B = \n \n ß ! \n"


class CharTokenizer:
    """One token per character: its code point. BOS (if any) is one that it adds, or does not."""

    def __init__(self, bos_token_id=None, adds_bos=False, eos_token_id=2):
        self.bos_token_id = bos_token_id
        self.eos_token_id = eos_token_id
        self.special = [bos_token_id] if adds_bos else []

    def encode(self, text, add_special_tokens=True):
        return [*(self.special if add_special_tokens else []), *map(ord, text)]

    def encode_with_ends(self, text, add_special_tokens=True):
        ends = [*accumulate(len(char.encode()) for char in text)]
        return self.encode(text, add_special_tokens), [
            *([0] * len(self.special) if add_special_tokens else []),
            *ends,
        ]


def cut(protocol, content, *, window, num_windows=None, tokenizer=None):
    options = QualityOptions("text", protocol, window, num_windows)
    text = EvaluationText("text", content, "0" * 64)
    return PROTOCOLS[protocol](text, tokenizer or CharTokenizer(), options)


def ids(result):
    return [window.token_ids.tolist() for window in result.windows]


def scored(result):
    return [window.next_tokens.tolist() for window in result.windows]


def scored_text(result):
    return "".join(chr(token) for tokens in scored(result) for token in tokens)


def codes(text):
    return [*map(ord, text)]


def test_windows_do_not_overlap_and_start_at_the_first_token():
    result = cut("windows", "abcdefghijk", window=3, num_windows=3)
    assert ids(result) == [codes("abc"), codes("def"), codes("ghi")]
    assert scored(result) == [codes("bc"), codes("ef"), codes("hi")]
    assert result.windows[0].token_ids.dtype == torch.int64
    assert result.description == (
        "windows of 3 tokens, not overlapping, no BOS, all 2 next-token positions scored, first 3"
    )


def test_windows_begin_with_bos_if_the_tokenizer_adds_it():
    result = cut("windows", "abcdefgh", window=3, tokenizer=CharTokenizer(BOS, adds_bos=True))
    assert ids(result) == [[BOS, *codes(pair)] for pair in ("ab", "cd", "ef", "gh")]
    assert scored(result) == [codes(pair) for pair in ("ab", "cd", "ef", "gh")]
    assert result.description == (
        "windows of 3 tokens, not overlapping, BOS first in each,"
        " all 2 next-token positions scored, all 4"
    )


def test_a_bos_that_the_tokenizer_does_not_add_stays_out():
    result = cut("windows", "abcdef", window=3, tokenizer=CharTokenizer(BOS))
    assert ids(result) == [codes("abc"), codes("def")]
    assert "no BOS" in result.description


@given(
    content=st.text(alphabet="aß✓🦜\n", max_size=60),
    window=st.integers(3, 10),
    num_windows=st.one_of(st.none(), st.integers(2, 8)),
    adds_bos=st.booleans(),
)
@settings(max_examples=150, deadline=None)
def test_windows_cover_the_text_in_order_and_count_its_bytes(
    content, window, num_windows, adds_bos
):
    tokenizer = CharTokenizer(BOS, adds_bos)
    stride = window - adds_bos
    wanted = num_windows or 2
    if len(content) < wanted * stride:
        needs = f"has {len(content)} tokens.* {wanted} windows .* need {wanted * stride}"
        with pytest.raises(UsageError, match=needs):
            cut("windows", content, window=window, num_windows=num_windows, tokenizer=tokenizer)
        return
    result = cut("windows", content, window=window, num_windows=num_windows, tokenizer=tokenizer)
    count = num_windows or len(content) // stride
    read = [token for piece in ids(result) for token in piece[int(adds_bos) :]]
    assert read == codes(content[: count * stride])
    for piece, tokens in zip(result.windows, scored(result), strict=True):
        assert len(piece.token_ids) == piece.num_scored + 1 == window
        assert piece.num_bytes == len("".join(map(chr, tokens)).encode())


@pytest.mark.parametrize("protocol", ["windows", "paper", "llama.cpp"])
@pytest.mark.parametrize(
    ("length", "remedy"), [(35, "at most 3 windows"), (19, "smaller windows"), (0, "longer text")]
)
def test_too_little_text_says_what_would_fit(protocol, length, remedy):
    with pytest.raises(UsageError, match=f"{length} tokens, and 4 windows .* need 40") as caught:
        cut(protocol, "x" * length, window=10, num_windows=4)
    assert remedy in caught.value.remedy


def test_paper_joins_the_rows_of_wikitext_by_blank_lines():
    rows = ["", " = A = \n", "", " so @-@ so . \n", "", "", " = B = \n", "", " ß ! \n"]
    joined = "\n\n".join(rows)
    result = cut("paper", WIKITEXT, window=9)
    assert len(result.windows) == len(joined) // 9  # the remainder is dropped
    assert [token for piece in ids(result) for token in piece] == codes(joined)[: 9 * 5]
    assert all(window.num_scored == 8 for window in result.windows)
    assert "9 rows of WikiText joined by blank lines" in result.description
    assert ids(cut("paper", WIKITEXT.replace("\n", "\r\n"), window=9)) == ids(result)


def test_paper_takes_another_text_as_it_is_with_the_default_special_tokens_once():
    tokenizer = CharTokenizer(BOS, adds_bos=True)
    result = cut("paper", "abcßefg\n\nx", window=4, tokenizer=tokenizer)
    assert ids(result) == [[BOS, *codes("abc")], codes("ßefg")]
    assert [window.num_bytes for window in result.windows] == [3, 3]
    assert "the text as it is" in result.description


@pytest.mark.parametrize(("window", "rows"), [(8, (4, 5, 6)), (7, (3, 4, 5)), (3, (1,))])
def test_llama_cpp_scores_the_rows_of_the_second_half(window, rows):
    content = "".join(map(chr, range(97, 97 + 2 * window)))
    result = cut("llama.cpp", content, window=window)
    expected = [[97 + start + row + 1 for row in rows] for start in (0, window)]
    assert scored(result) == expected  # row i of the logits predicts token i + 1
    assert [window.num_bytes for window in result.windows] == [len(rows)] * 2
    assert f"last {len(rows)} next-token positions" in result.description


def test_llama_cpp_puts_bos_over_the_first_token_of_each_chunk():
    result = cut("llama.cpp", "abcdefghijk", window=4, tokenizer=CharTokenizer(BOS, adds_bos=True))
    assert ids(result) == [[BOS, *codes("abc")], [BOS, *codes("efg")], [BOS, *codes("ijk")]]
    assert scored(result) == [codes("c"), codes("g"), codes("k")]
    assert "BOS in place of the first token of each" in result.description


def test_llama_cpp_without_bos_keeps_the_first_tokens():
    result = cut("llama.cpp", "abcdefgh", window=4, tokenizer=CharTokenizer(BOS))
    assert ids(result) == [codes("abcd"), codes("efgh")]


def test_llama_cpp_drops_one_newline_at_the_end_and_keeps_other_line_ends():
    assert ids(cut("llama.cpp", "ab\r\nef\n\n", window=3)) == [codes("ab\r"), codes("\nef")]
    assert len(cut("llama.cpp", "abcdef\n\n\n", window=4).windows) == 2
    with pytest.raises(UsageError, match="7 tokens"):
        cut("llama.cpp", "abcdef\n\n", window=4)


@given(total=st.integers(1, 60), max_scored=st.integers(2, 12), num_bytes=st.integers(0, 500))
@settings(deadline=None)
def test_rolling_scores_every_token_once_from_as_much_context_as_fits(total, max_scored, num_bytes):
    tokens = list(range(100, 100 + total))
    windows = roll(tokens, BOS, max_scored, num_bytes)
    assert [t for window in windows for t in window.next_tokens.tolist()] == tokens
    assert sum(window.num_bytes for window in windows) == num_bytes
    assert all(window.num_bytes >= 0 for window in windows)
    whole = [BOS, *tokens]
    done = 0
    for window in windows:
        read = window.token_ids.tolist()
        done += window.num_scored
        assert read == whole[done + 1 - len(read) : done + 1]  # what stands before is its context
        # a model reads all but the last token: no more than max_scored, and that many if it can
        assert len(read) - 1 == min(max_scored, done)


def test_rolling_takes_the_articles_of_wikitext_detokenized():
    result = cut("rolling", WIKITEXT, window=8, tokenizer=CharTokenizer(BOS))
    articles = " = A =\n\nso-so.\n\n", " = B =\n\nß!\n"
    assert scored_text(result) == "".join(articles)
    assert ids(result)[0] == [BOS, *codes(" = A =\n\n")]
    pages = " = A = \n \n so @-@ so . \n \n ", " = B = \n \n ß ! \n"
    assert sum(window.num_bytes for window in result.windows) == len("".join(pages).encode())
    assert result.num_words == sum(len(page.split()) + 2 for page in pages)
    assert "first 2 of 2 articles of WikiText" in result.description


def test_rolling_takes_whole_documents_until_there_are_windows_enough():
    result = cut("rolling", WIKITEXT, window=8, num_windows=2, tokenizer=CharTokenizer(BOS))
    assert scored_text(result) == " = A =\n\nso-so.\n\n"
    assert result.num_words == 9
    assert "first 1 of 2 articles" in result.description


@pytest.mark.parametrize(
    ("tokenizer", "prefix"),
    [
        (CharTokenizer(BOS), BOS),
        (CharTokenizer(BOS, adds_bos=True), BOS),
        (CharTokenizer(None, eos_token_id=0), 0),
    ],
)
def test_rolling_puts_bos_or_else_eos_before_a_document_once(tokenizer, prefix):
    result = cut("rolling", "one two", window=4, tokenizer=tokenizer)
    assert ids(result) == [[prefix, *codes("one ")], codes("e two")]
    assert result.num_words == 2


def test_rolling_needs_a_token_to_begin_with():
    with pytest.raises(ModelError, match="neither BOS nor EOS"):
        cut("rolling", "one two", window=4, tokenizer=CharTokenizer(None, eos_token_id=None))


def test_rolling_says_what_a_short_text_gives():
    with pytest.raises(UsageError, match="7 tokens, which give 2 rolling windows of 4") as caught:
        cut("rolling", "one two", window=4, num_windows=3)
    assert "at most 2 windows" in caught.value.remedy
