import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import pre_tokenizers

from llmopt.models.tokenizer import Tokenizer
from llmopt.quality.divergence import compare_logits
from llmopt.quality.windows import Window
from llmopt.quality.worst_tokens import CONTEXT_CHARACTERS, NUM_GUESSES, WorstTokens, token_text

TEXT = "The ship had sailed before the naive captain knew; nobody waved, and the rain went on. " * 4


@pytest.fixture(scope="module")
def tokenizer(byte_level_tokenizer):
    inner = byte_level_tokenizer(pre_tokenizers.ByteLevel(add_prefix_space=False))
    return Tokenizer(inner, [0])


@pytest.fixture(scope="module")
def window(tokenizer):
    token_ids = torch.tensor(tokenizer.encode(TEXT))
    return Window(token_ids, num_scored=len(token_ids) - 1, num_bytes=len(TEXT.encode()))


def random_logits(num_rows, seed):
    return 3 * torch.randn(num_rows, 600, generator=torch.Generator().manual_seed(seed))


def collect(tokenizer, window, limit, chunk=7):
    """The worst of random logits, shown in chunks; with the divergences of all positions."""
    base, target = random_logits(window.num_scored, 0), random_logits(window.num_scored, 1)
    worst = WorstTokens(limit)
    klds = []
    for start in range(0, window.num_scored, chunk):
        rows = slice(start, start + chunk)
        statistics = compare_logits(base[rows], target[rows], window.next_tokens[rows])
        worst.add(0, 1 + start, base[rows], target[rows], statistics)
        klds += statistics.kld.tolist()
    return worst.collect(tokenizer, [window]), klds, base, target


@pytest.mark.parametrize("limit", [1, 5, 50, 1000])
def test_the_worst_of_all_chunks_are_kept_in_order(tokenizer, window, limit):
    found, klds, _, _ = collect(tokenizer, window, limit)
    expected = sorted(((kld, 1 + row) for row, kld in enumerate(klds)), reverse=True)[:limit]
    assert [(token.kld, token.position) for token in found] == expected


def test_a_token_stands_in_its_context_with_what_both_models_say(tokenizer, window):
    found, _, base, target = collect(tokenizer, window, 5)
    for token in found:
        assert f"{token.before}{token.token}{token.after}" in TEXT
        assert len(token.before) == CONTEXT_CHARACTERS or token.position < 48
        assert len(token.after) <= CONTEXT_CHARACTERS
        row, right = token.position - 1, int(window.token_ids[token.position])
        probabilities = base[row].double().softmax(0)
        assert token.base_probability == pytest.approx(float(probabilities[right]), rel=1e-5)
        assert token.target_probability == pytest.approx(
            float(target[row].double().softmax(0)[right]), rel=1e-5
        )
        values = probabilities.topk(NUM_GUESSES).values.tolist()
        assert [guess.probability for guess in token.base_guesses] == pytest.approx(values)
        assert token.base_guesses != token.target_guesses


def test_no_divergence_gives_no_worst_tokens(tokenizer, window):
    logits = random_logits(window.num_scored, 0)
    worst = WorstTokens(5)
    worst.add(0, 1, logits, logits, compare_logits(logits, logits, window.next_tokens))
    assert worst.collect(tokenizer, [window]) == ()


@given(words=st.lists(st.sampled_from(["rain", "naïve", "captain", "日", "🚢"]), min_size=1))
def test_the_texts_of_a_texts_tokens_are_the_text(tokenizer, words):
    text = " ".join(words)
    ids = tokenizer.encode(text)
    whole = [token_text(tokenizer, ids[:i], ids[i]) for i in range(len(ids))]
    if "�" not in "".join(whole):  # a token may be a part of a character
        assert "".join(whole) == text


def test_the_space_in_front_of_a_token_shows(tokenizer, sentence_piece_tokenizer):
    other = Tokenizer(sentence_piece_tokenizer(prefix=True), [2])
    for one in (tokenizer, other):
        context = one.encode("the", add_special_tokens=False)
        (space_a,) = one.encode("the a", add_special_tokens=False)[len(context) :]
        assert token_text(one, context, space_a) == " a"


def test_a_special_token_is_its_name(tokenizer):
    assert token_text(tokenizer, tokenizer.encode("the"), 0) == "<|end|>"
