import random
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer as FastTokenizer
from tokenizers import decoders, models, pre_tokenizers

from llmopt.engine.detokenizer import TokenText
from llmopt.models.tokenizer import Tokenizer, load_tokenizer


def wrap(fast: FastTokenizer, **special: str) -> Tokenizer:
    from transformers import PreTrainedTokenizerFast

    return Tokenizer(PreTrainedTokenizerFast(tokenizer_object=fast, **special), [0])


def byte_level() -> Tokenizer:
    """One token per byte, and "<end>", which is special."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    fast = FastTokenizer(models.BPE({c: i for i, c in enumerate(alphabet)}, []))
    fast.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    fast.decoder = decoders.ByteLevel()
    fast.add_tokens(["né\u2192"])  # not of the byte alphabet: stands for itself
    return wrap(fast, eos_token="<end>")


def sentencepiece(*, strips: bool) -> Tokenizer:
    """Pieces with the mark for spaces, and one token for each byte."""
    pieces = ["<unk>", "\u2581", "\u2581the", "\u2581cat", "s", "é", "\u2581\u2581"]
    vocab = pieces + [f"<0x{byte:02X}>" for byte in range(256)]
    model = models.BPE(
        {piece: i for i, piece in enumerate(vocab)}, [], unk_token="<unk>", byte_fallback=True
    )
    fast = FastTokenizer(model)
    steps: list[Any] = [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse()]
    if strips:
        steps.append(decoders.Strip(" ", 1, 0))
    fast.decoder = decoders.Sequence(steps)
    return wrap(fast, unk_token="<unk>")


def words() -> Tokenizer:
    """Whole words, which the tokenizer joins by spaces; it has no decoder."""
    fast = FastTokenizer(models.WordLevel({f"w{i}": i for i in range(20)}, unk_token="w2"))
    return wrap(fast, bos_token="w0", eos_token="w1")


def pieces_of(tokenizer: Tokenizer, token_ids: list[int]) -> list[str]:
    text = TokenText(tokenizer).start()
    return [*(text.push([token_id]) for token_id in token_ids), text.finish()]


BYTES = byte_level()
STRIPPING, KEEPING = sentencepiece(strips=True), sentencepiece(strips=False)
WORDS = words()


@settings(deadline=None)
@given(st.lists(st.integers(0, BYTES.vocab_size - 1), max_size=40))
def test_byte_level_parts_are_the_whole_for_any_tokens(token_ids: list[int]) -> None:
    assert "".join(pieces_of(BYTES, token_ids)) == BYTES.decode(token_ids)


@settings(deadline=None)
@given(st.text(max_size=20))
def test_a_text_comes_out_as_it_went_in_and_no_character_in_parts(text: str) -> None:
    token_ids = BYTES.encode(text)
    pieces = pieces_of(BYTES, token_ids)
    assert "".join(pieces) == text
    assert len(token_ids) == len(text.encode())
    ends = {len(text[:i].encode()) for i in range(1, len(text) + 1)}
    given_out = [index + 1 for index, piece in enumerate(pieces) if piece]
    assert set(given_out) == ends  # each character with its last byte, not later


def test_an_incomplete_character_is_held_back_and_replaced_at_the_end() -> None:
    snowman = BYTES.encode("a\u2603b")
    assert pieces_of(BYTES, snowman) == ["a", "", "", "\u2603", "b", ""]
    assert pieces_of(BYTES, snowman[:3]) == ["a", "", "", "\ufffd"]


def test_special_tokens_are_left_out_and_added_ones_are_not() -> None:
    backend = BYTES.backend
    added, end = backend.convert_tokens_to_ids(["né\u2192", "<end>"])
    assert pieces_of(BYTES, [added, end, added]) == ["né\u2192", "", "né\u2192", ""]
    assert BYTES.decode([added, end, added]) == "né\u2192né\u2192"
    assert pieces_of(BYTES, [99999]) == ["", ""]  # rows of a model's head without a token


units = st.one_of(
    st.sampled_from([[1], [2], [3], [4], [5], [6]]),
    st.characters(exclude_categories=("Cs",)).map(lambda c: [7 + byte for byte in c.encode()]),
)


@settings(deadline=None)
@given(st.lists(units, max_size=15), st.sampled_from([STRIPPING, KEEPING]))
def test_sentencepiece_parts_are_the_whole_for_whole_characters(
    parts: list[list[int]], tokenizer: Tokenizer
) -> None:
    token_ids = [token_id for part in parts for token_id in part]
    assert "".join(pieces_of(tokenizer, token_ids)) == tokenizer.decode(token_ids)


def test_only_the_first_space_of_a_text_is_stripped() -> None:
    assert pieces_of(STRIPPING, [2, 3]) == ["the", " cat", ""]
    assert pieces_of(STRIPPING, [6, 3]) == [" ", " cat", ""]
    assert pieces_of(KEEPING, [2, 3]) == [" the", " cat", ""]


def test_broken_bytes_cost_only_themselves() -> None:
    broken = [7 + byte for byte in b"\xe2\x98\x83\xff\xe2\x98\x83"]
    assert "".join(pieces_of(KEEPING, broken)) == "\u2603\ufffd\u2603"


@settings(deadline=None)
@given(st.lists(st.integers(0, 19), max_size=12))
def test_tokenizers_of_words_join_them_as_they_do(token_ids: list[int]) -> None:
    assert "".join(pieces_of(WORDS, token_ids)) == WORDS.decode(token_ids)


@pytest.mark.real_model
def test_the_real_tokenizers_for_random_tokens(default_model: Path, gemma_model: Path) -> None:
    generator = random.Random(0)
    for path, num_bytes in ((default_model, 300), (gemma_model, 0)):
        tokenizer = load_tokenizer(path)
        tokens = TokenText(tokenizer)
        for _ in range(300):
            # The first ids of the default model are single bytes, whole and broken characters.
            limits = [generator.choice([tokenizer.vocab_size, num_bytes or 10**6])] * 20
            token_ids = [generator.randrange(min(n, tokenizer.vocab_size)) for n in limits]
            text = tokens.start()
            parts = [text.push([token_id]) for token_id in token_ids]
            whole = tokenizer.decode(token_ids)
            if num_bytes or "\ufffd" not in whole:
                assert "".join([*parts, text.finish()]) == whole
