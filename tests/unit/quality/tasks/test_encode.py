"""Texts to pairs of tokens, by the harness' rules."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmopt.errors import UsageError
from llmopt.quality.tasks.encode import (
    TokenPair,
    encode_pair,
    encode_text,
    fit_pair,
    rolling_pairs,
)

BOS, EOS = 1, 0


def test_both_parts_are_tokenized_together(make_tokenizer):
    tokenizer = make_tokenizer()
    pair = encode_pair(tokenizer, "The water", " boils")
    assert list(pair.context) == tokenizer.encode("The water")
    assert tokenizer.decode(pair.context + pair.continuation) == "The water boils"
    assert tokenizer.decode(pair.continuation) == " boils"


def test_spaces_at_the_end_of_the_context_move(make_tokenizer):
    tokenizer = make_tokenizer()
    assert encode_pair(tokenizer, "The water \n", "boils") == encode_pair(
        tokenizer, "The water", " \nboils"
    )


def test_special_tokens_are_the_tokenizers_own_and_not_put_twice(make_tokenizer):
    tokenizer = make_tokenizer(bos=True)
    pair = encode_pair(tokenizer, "The water", " boils")
    assert pair.context[0] == BOS
    assert BOS not in pair.continuation
    assert encode_text(tokenizer, "<|turn|>The") == encode_text(tokenizer, "The")
    assert encode_text(tokenizer, "The").count(BOS) == 1


@pytest.mark.parametrize("bos", [False, True])
@pytest.mark.parametrize("context", ["", "  "])
def test_an_empty_context_is_bos(make_tokenizer, bos, context):
    tokenizer = make_tokenizer(bos=bos)
    pair = encode_pair(tokenizer, context, "boils")
    assert pair.context == (BOS,)
    assert tokenizer.decode(pair.continuation) == context + "boils"


def test_an_empty_context_before_a_bos_in_the_text(make_tokenizer):
    tokenizer = make_tokenizer()
    pair = encode_pair(tokenizer, "", "<|turn|>boils")
    assert pair == encode_pair(tokenizer, "", "boils")


def test_eos_stands_in_for_bos_and_neither_is_refused(make_tokenizer):
    tokenizer = make_tokenizer()
    tokenizer.backend.bos_token = None
    assert encode_pair(tokenizer, "", "boils").context == (EOS,)
    tokenizer.backend.eos_token = None
    with pytest.raises(UsageError, match="neither a BOS nor an EOS"):
        encode_pair(tokenizer, "", "boils")


def test_a_continuation_without_a_token(make_tokenizer):
    with pytest.raises(UsageError, match="no token of its own"):
        encode_pair(make_tokenizer(), "The water", "")


def test_long_contexts_lose_their_left_end():
    pair = TokenPair((1, 2, 3, 4), (5, 6))
    assert fit_pair(pair, 5) == pair  # 6 is predicted and never read
    assert fit_pair(pair, 4) == TokenPair((2, 3, 4), (5, 6))
    assert fit_pair(pair, 2) == TokenPair((4,), (5, 6))
    with pytest.raises(UsageError, match=r"a continuation has 2 tokens, .* at most 1"):
        fit_pair(pair, 1)


def test_rolling_windows_of_the_harness_example():
    # docstring of LM.loglikelihood_rolling in lm_eval/api/model.py: 10 tokens, windows of 4
    tokens = list(range(100, 110))
    assert rolling_pairs(tokens, BOS, 4) == [
        TokenPair((BOS,), (100, 101, 102, 103)),
        TokenPair((103,), (104, 105, 106, 107)),
        TokenPair((105, 106, 107), (108, 109)),
    ]
    assert rolling_pairs([], BOS, 4) == []


@given(st.integers(0, 60), st.integers(1, 20))
def test_rolling_scores_each_token_once_with_its_real_context(num_tokens, max_model_len):
    tokens = list(range(2, 2 + num_tokens))
    pairs = rolling_pairs(tokens, BOS, max_model_len)
    assert [token for pair in pairs for token in pair.continuation] == tokens
    for pair in pairs:
        window = pair.context + pair.continuation
        assert len(window) - 1 <= max_model_len
        start = 0 if window[0] == BOS else window[0] - 1
        assert window == (BOS, *tokens)[start : start + len(window)]
        if pair is not pairs[0]:
            assert len(window) - 1 == max_model_len
