import hashlib
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import pre_tokenizers

from llmopt.errors import UsageError
from llmopt.models.tokenizer import Tokenizer
from llmopt.quantize.calibration import (
    choose_windows,
    load_calibration,
    pack_corpus,
    pack_samples,
)
from llmopt.quantize.calibration_source import Corpus, Document


class WordEncoder:
    """One token per word, its number; with a BOS token 9999 in front where asked."""

    def __init__(self, bos_token_id: int | None = None, adds_bos: bool = False) -> None:
        self.bos_token_id = bos_token_id
        self._adds_bos = adds_bos

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        prefix = [9999] if self._adds_bos and add_special_tokens else []
        return prefix + [int(word) for word in text.split()]


@pytest.fixture
def text_file(tmp_path: Path) -> Path:
    path = tmp_path / "numbers.txt"
    path.write_text(" ".join(map(str, range(1000))))
    return path


def test_windows_are_consecutive_text_spread_over_the_whole(text_file: Path) -> None:
    data = load_calibration(WordEncoder(), text_file, num_samples=10, sample_tokens=20, seed=1)
    assert data.tokens.shape == (10, 20)
    for i, window in enumerate(data.tokens.tolist()):
        assert window == list(range(window[0], window[0] + 20))
        assert 100 * i <= window[0] <= 100 * i + 80


def test_seed_chooses_the_windows(text_file: Path) -> None:
    def tokens(seed: int) -> list[list[int]]:
        data = load_calibration(WordEncoder(), text_file, num_samples=4, sample_tokens=8, seed=seed)
        rows: list[list[int]] = data.tokens.tolist()
        return rows

    assert tokens(3) == tokens(3)
    assert tokens(3) != tokens(4)


def test_every_window_starts_with_bos_where_the_model_has_it(text_file: Path) -> None:
    encoder = WordEncoder(bos_token_id=9999, adds_bos=True)
    data = load_calibration(encoder, text_file, num_samples=5, sample_tokens=10)
    assert data.tokens[:, 0].tolist() == [9999] * 5
    assert 9999 not in data.tokens[:, 1:].flatten().tolist()
    assert data.sample_tokens == 10


def test_bos_that_the_tokenizer_does_not_add_is_not_added(text_file: Path) -> None:
    encoder = WordEncoder(bos_token_id=9999)
    data = load_calibration(encoder, text_file, num_samples=2, sample_tokens=8)
    assert 9999 not in data.tokens.flatten().tolist()


def test_source_and_hash_are_recorded(text_file: Path) -> None:
    data = load_calibration(WordEncoder(), text_file, num_samples=1, sample_tokens=8)
    assert data.source == "numbers.txt"
    assert len(data.text_sha256) == 64


def test_bundled_text_is_used_without_a_file() -> None:
    class Letters:
        bos_token_id = None

        def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
            return [ord(letter) for letter in text]

    data = load_calibration(Letters(), num_samples=16, sample_tokens=512)
    assert data.source == "bundled:calibration"
    assert data.tokens.shape == (16, 512)


def test_too_little_text_names_the_number_of_tokens(text_file: Path) -> None:
    with pytest.raises(UsageError, match=r"numbers\.txt has 1,000 tokens.*4 .* 512 need 2,048"):
        load_calibration(WordEncoder(), text_file, num_samples=4, sample_tokens=512)


def test_missing_and_binary_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cannot be read"):
        load_calibration(WordEncoder(), tmp_path / "absent.txt")
    (tmp_path / "binary.txt").write_bytes(b"\xff\xfe\x00\x81")
    with pytest.raises(UsageError, match="cannot be read"):
        load_calibration(WordEncoder(), tmp_path / "binary.txt")


@pytest.mark.parametrize(("samples", "tokens"), [(0, 16), (4, 1), (-1, 8)])
def test_senseless_sizes_are_refused(text_file: Path, samples: int, tokens: int) -> None:
    with pytest.raises(UsageError, match="make no sense"):
        load_calibration(WordEncoder(), text_file, num_samples=samples, sample_tokens=tokens)


@given(
    length=st.integers(1, 300),
    num_samples=st.integers(1, 12),
    window=st.integers(1, 40),
    seed=st.integers(0, 5),
)
def test_windows_are_full_and_never_overlap(
    length: int, num_samples: int, window: int, seed: int
) -> None:
    text = list(range(length))
    if length < num_samples * window:
        with pytest.raises(UsageError):
            choose_windows(
                text, num_samples=num_samples, window_tokens=window, seed=seed, source="t"
            )
        return
    windows = choose_windows(
        text, num_samples=num_samples, window_tokens=window, seed=seed, source="t"
    )
    used = [token for chosen in windows for token in chosen]
    assert len(used) == num_samples * window == len(set(used))
    assert used == sorted(used)


class ChatEncoder(WordEncoder):
    """Renders a message as the number of its role and then its words."""

    ROLES: ClassVar = {"user": 7001, "assistant": 7002}

    def __init__(self, has_chat_template: bool = True, **arguments: Any) -> None:
        super().__init__(**arguments)
        self.has_chat_template = has_chat_template

    def apply_chat_template(
        self, messages: Sequence[Mapping[str, str]], *, add_generation_prompt: bool = True
    ) -> list[int]:
        token_ids = []
        for message in messages:
            token_ids += [self.ROLES[message["role"]], *self.encode(message["content"], False)]
        return token_ids + [7002] * add_generation_prompt


def numbers(first: int, count: int) -> str:
    return " ".join(map(str, range(first, first + count)))


QUESTION = {"role": "user", "content": numbers(0, 4)}
ANSWER = {"role": "assistant", "content": numbers(10, 5)}


def test_documents_are_packed_and_what_is_left_over_is_counted() -> None:
    corpus = Corpus("c", [Document(numbers(0, 7)), Document(numbers(100, 6)), Document("")])
    data = pack_corpus(WordEncoder(), corpus, num_samples=None, sample_tokens=5)
    assert data.tokens.shape == (2, 5)
    assert set(data.tokens.flatten().tolist()) <= {*range(7), *range(100, 106)}
    assert (data.num_documents, data.num_chats, data.unused_tokens) == (3, 0, 3)


def test_window_may_span_documents() -> None:
    corpus = Corpus("c", [Document(numbers(i * 100, 3)) for i in range(4)])
    data = pack_corpus(WordEncoder(), corpus, num_samples=None, sample_tokens=4)
    assert data.tokens.tolist() == [[0, 1, 2, 100], [101, 102, 200, 201], [202, 300, 301, 302]]
    assert data.unused_tokens == 0


def test_conversations_go_through_the_template() -> None:
    corpus = Corpus("c", [Document(None, (QUESTION, ANSWER)), Document(None, (QUESTION,))])
    data = pack_corpus(ChatEncoder(), corpus, num_samples=1, sample_tokens=17)
    first = [7001, 0, 1, 2, 3, 7002, 10, 11, 12, 13, 14]
    assert data.tokens.tolist() == [[*first, 7001, 0, 1, 2, 3, 7002]]  # an answer comes next
    assert data.num_chats == 2


def test_completions_are_plain_text_where_there_is_no_template() -> None:
    corpus = Corpus("c", [Document(f"{numbers(0, 4)} {numbers(10, 5)}", (QUESTION, ANSWER))])
    data = pack_corpus(ChatEncoder(False), corpus, num_samples=1, sample_tokens=9)
    assert data.tokens.tolist() == [[0, 1, 2, 3, 10, 11, 12, 13, 14]]
    assert data.num_chats == 0


@pytest.mark.parametrize("encoder", [WordEncoder(), ChatEncoder(False)])
def test_messages_need_a_template(encoder: WordEncoder) -> None:
    corpus = Corpus("c", [Document(None, (QUESTION,))])
    with pytest.raises(UsageError, match="no chat template"):
        pack_corpus(encoder, corpus, num_samples=1, sample_tokens=4)


def test_streamed_corpus_is_read_only_as_far_as_needed() -> None:
    def endless() -> Iterator[Document]:
        for i in itertools.count():
            assert i < 10, "more was read than needed"
            yield Document(numbers(i, 8))

    data = pack_corpus(
        WordEncoder(), Corpus("hub:x/y", endless(), streamed=True), num_samples=5, sample_tokens=8
    )
    assert data.num_documents == 5
    with pytest.raises(UsageError, match="may have no end"):
        pack_corpus(
            WordEncoder(), Corpus("hub:x/y", endless(), True), num_samples=None, sample_tokens=8
        )


def test_hash_is_of_the_documents() -> None:
    def sha256(*documents: Document) -> str:
        corpus = Corpus("c", documents)
        return pack_corpus(ChatEncoder(), corpus, num_samples=1, sample_tokens=2).text_sha256

    one = Document(numbers(0, 9))
    assert sha256(one) == hashlib.sha256(numbers(0, 9).encode()).hexdigest()
    different = [sha256(one), sha256(one, one), sha256(Document(None, (QUESTION,)))]
    assert len(set(different)) == 3


def test_sampled_tokens_are_packed() -> None:
    encoder = WordEncoder(bos_token_id=9999, adds_bos=True)
    data = pack_samples(encoder, [[1, 2, 3], [4, 5], [6, 7, 8]], num_samples=2, sample_tokens=4)
    assert data.tokens[:, 0].tolist() == [9999, 9999]
    assert data.source == "self"
    assert (data.num_documents, data.unused_tokens) == (3, 2)
    with pytest.raises(UsageError, match="self has 3 tokens"):
        pack_samples(encoder, [[1, 2, 3]], num_samples=2, sample_tokens=4)


def test_a_conversation_that_the_template_refuses_is_the_users_error(
    byte_level_tokenizer: Callable[..., Any],
) -> None:
    backend = byte_level_tokenizer(pre_tokenizers.ByteLevel(False))
    backend.chat_template = "{{ raise_exception('user and assistant in turn') }}"
    corpus = Corpus("c", [Document(None, (ANSWER, ANSWER))])
    with pytest.raises(UsageError, match="refuses a conversation of assistant, assistant"):
        pack_corpus(Tokenizer(backend, [0]), corpus, num_samples=1, sample_tokens=4)
