"""A tokenizer goes into GGUF metadata and comes back with the same ids, or is refused."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tokenizers import AddedToken, Regex, Tokenizer, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from llmopt.errors import ModelError
from llmopt.formats.gguf_header import GgufError
from llmopt.models.gguf_pretokenizers import (
    PRE_TOKENIZERS,
    find_pre_tokenizer,
    name_pre_tokenizer,
)
from llmopt.models.gguf_tokenizer import build_tokenizer
from llmopt.models.gguf_vocabulary import vocabulary_metadata
from llmopt.models.tokenizer import Tokenizer as LlmoptTokenizer
from llmopt.models.tokenizer import load_tokenizer

Make = Callable[..., Any]
BYTES = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
TEXTS = [
    "The quick brown fox's 1234 tails, 3.14 times;  two   spaces\n\n\nthree lines\ttab",
    "Ünïcode → 日本語 🙂 naïve ½ नमस्ते",
    "a [tool] call and\r\nWindows lines   ",
    "",
    "x",
]


def split(pattern: str) -> Any:
    """As a tokenizer.json has it: one pattern, then bytes."""
    cut = pre_tokenizers.Split(Regex(pattern), "isolated", invert=False)
    return pre_tokenizers.Sequence([cut, BYTES])


# The pre_tokenizer of tokenizer.json of well-known models.
LLAMA_3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
QWEN_2 = LLAMA_3.replace(r"\p{N}{1,3}", r"\p{N}")
KNOWN = {
    "gpt-2": (pre_tokenizers.ByteLevel(add_prefix_space=False), False),
    "smollm": (
        pre_tokenizers.Sequence(
            [
                pre_tokenizers.Digits(individual_digits=True),
                pre_tokenizers.ByteLevel(add_prefix_space=False),
            ]
        ),
        False,
    ),
    "llama-bpe": (split(LLAMA_3), True),
    "smaug-bpe": (split(LLAMA_3), False),
    "qwen2": (split(QWEN_2), False),
    "deepseek-coder": (
        pre_tokenizers.Sequence(
            [
                *(
                    pre_tokenizers.Split(Regex(pattern), "isolated")
                    for pattern in (r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", "[一-龥ࠀ-一가-퟿]+")
                ),
                pre_tokenizers.Digits(individual_digits=True),
                BYTES,
            ]
        ),
        False,
    ),
}


@pytest.mark.parametrize("name", PRE_TOKENIZERS)
def test_no_two_names_cut_alike(name: str) -> None:
    known = PRE_TOKENIZERS[name]
    assert name_pre_tokenizer(known.build(), ignore_merges=known.ignore_merges) == name


def test_other_names_stand_for_the_same() -> None:
    assert find_pre_tokenizer("llama3") == PRE_TOKENIZERS["llama-bpe"]
    assert find_pre_tokenizer("") == PRE_TOKENIZERS["default"]
    assert find_pre_tokenizer("no-such-name") is None


def wrap(tokenizer: Any) -> LlmoptTokenizer:
    return LlmoptTokenizer(tokenizer, [tokenizer.eos_token_id])


def rebuild(metadata: dict[str, Any]) -> LlmoptTokenizer:
    return LlmoptTokenizer(*build_tokenizer({k: field.value for k, field in metadata.items()}))


@pytest.mark.parametrize("name", KNOWN)
def test_byte_level_tokenizers_are_named_and_come_back(
    name: str, byte_level_tokenizer: Make
) -> None:
    pre_tokenizer, ignore_merges = KNOWN[name]
    original = wrap(byte_level_tokenizer(pre_tokenizer, ignore_merges=ignore_merges, bos=True))
    metadata = vocabulary_metadata(original, vocab_size=608)
    assert metadata["tokenizer.ggml.pre"].value == name
    assert metadata["tokenizer.ggml.add_bos_token"].value is True
    assert metadata["tokenizer.ggml.bos_token_id"].value == 1
    restored = rebuild(metadata)
    for text in [*TEXTS, "<|turn|>hi <|end|>[tool]"]:
        ids = restored.encode(text)
        assert ids == original.encode(text), text
        assert restored.decode(ids) == original.decode(ids)
    assert restored.eos_token_ids == (0,)
    chat = [{"role": "user", "content": "hello"}]
    assert restored.apply_chat_template(chat) == original.apply_chat_template(chat)


@pytest.mark.parametrize("prefix", [True, False], ids=["llama 2", "gemma"])
def test_sentence_piece_tokenizers_come_back(prefix: bool, sentence_piece_tokenizer: Make) -> None:
    original = wrap(sentence_piece_tokenizer(prefix=prefix))
    metadata = vocabulary_metadata(original, vocab_size=610)
    assert metadata["tokenizer.ggml.model"].value == "llama"
    assert metadata["tokenizer.ggml.add_space_prefix"].value is prefix
    restored = rebuild(metadata)
    for text in TEXTS:
        ids = restored.encode(text)
        assert ids == original.encode(text), text
        assert restored.decode(ids) == original.decode(ids)


def test_added_tokens_have_real_spaces(sentence_piece_tokenizer: Make) -> None:
    tokenizer = sentence_piece_tokenizer(prefix=False)
    count = len(tokenizer)
    added = [AddedToken(token, normalized=True) for token in ("▁▁", "\n\n", "<unused>")]
    tokenizer.backend_tokenizer.add_tokens(added)
    metadata = vocabulary_metadata(wrap(tokenizer), vocab_size=count + 3)
    tokens, types = (metadata[f"tokenizer.ggml.{key}"].value for key in ("tokens", "token_type"))
    assert tokens[count:] == ["  ", "\n\n", "<unused>"]
    assert types[count:] == [4, 4, 4]
    for text in ("a  b\n\n\nc <unused>", "    ", "one two   three"):
        assert rebuild(metadata).encode(text) == tokenizer.encode(text), text


def test_ids_without_a_token_are_unused(byte_level_tokenizer: Make) -> None:
    original = wrap(byte_level_tokenizer(KNOWN["gpt-2"][0]))
    metadata = vocabulary_metadata(original, vocab_size=605)
    tokens, types = (metadata[f"tokenizer.ggml.{key}"].value for key in ("tokens", "token_type"))
    assert len(tokens) == len(types) == 605
    assert tokens[600:] == [f"[PAD{i}]" for i in range(600, 605)]
    assert types[600:] == [5] * 5
    assert types[:2] == [3, 3]  # special
    assert types[599] == 4  # added, not special
    assert types[5] == 1
    assert metadata["tokenizer.ggml.add_bos_token"].value is False


def test_more_ends_of_text_are_kept(byte_level_tokenizer: Make) -> None:
    original = LlmoptTokenizer(byte_level_tokenizer(KNOWN["gpt-2"][0]), [0, 1])
    metadata = vocabulary_metadata(original, vocab_size=600)
    assert metadata["tokenizer.ggml.eos_token_id"].value == 0
    assert metadata["tokenizer.ggml.eot_token_id"].value == 1
    assert rebuild(metadata).eos_token_ids == (0, 1)


def test_an_unknown_pre_tokenizer_asks_for_its_name(byte_level_tokenizer: Make) -> None:
    original = wrap(byte_level_tokenizer(split(r"\p{L}+|\d{2}|.")))
    with pytest.raises(ModelError, match=r"cuts words in a way.*--gguf-pre NAME"):
        vocabulary_metadata(original, vocab_size=600)
    metadata = vocabulary_metadata(original, vocab_size=600, pre="viking")
    assert metadata["tokenizer.ggml.pre"].value == "viking"


def test_a_wrong_name_is_found_out(byte_level_tokenizer: Make) -> None:
    original = wrap(byte_level_tokenizer(KNOWN["qwen2"][0]))
    with pytest.raises(ModelError, match="would give other ids"):
        vocabulary_metadata(original, vocab_size=600, pre="default")


def test_a_tokenizer_that_changes_letters_is_refused(byte_level_tokenizer: Make) -> None:
    tokenizer = byte_level_tokenizer(KNOWN["gpt-2"][0])
    tokenizer.backend_tokenizer.normalizer = normalizers.Lowercase()
    with pytest.raises(ModelError, match="changes texts"):
        vocabulary_metadata(wrap(tokenizer), vocab_size=600)


def test_normal_form_c_is_no_change(byte_level_tokenizer: Make) -> None:
    tokenizer = byte_level_tokenizer(KNOWN["qwen2"][0])
    tokenizer.backend_tokenizer.normalizer = normalizers.NFC()
    metadata = vocabulary_metadata(wrap(tokenizer), vocab_size=600)
    assert rebuild(metadata).encode("u\u0308") == tokenizer.encode("ü")


def test_other_kinds_of_tokenizers_are_refused() -> None:
    inner = Tokenizer(models.WordLevel({"a": 0, "</s>": 1}, unk_token="a"))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=inner, eos_token="</s>")
    with pytest.raises(ModelError, match="WordLevel model"):
        vocabulary_metadata(wrap(tokenizer), vocab_size=2)


def plain(byte_level_tokenizer: Make) -> dict[str, Any]:
    original = wrap(byte_level_tokenizer(KNOWN["gpt-2"][0]))
    metadata = vocabulary_metadata(original, vocab_size=600)
    return {key: field.value for key, field in metadata.items()}


@pytest.mark.parametrize(
    ("key", "value", "reason"),
    [
        ("model", "bert", "kind 'bert'"),
        ("model", None, "kind None"),
        ("pre", "unheard-of", "pre-tokenizer 'unheard-of'"),
        ("tokens", None, "no tokens"),
        ("tokens", [1, 2], "not all texts"),
        ("tokens", ["a", "a"], "two tokens are the same"),
        ("token_type", [1], "not 600 numbers"),
        ("merges", ["onlyone"], "is not two tokens"),
        ("merges", ["zz yy"], "damaged"),
    ],
)
def test_damaged_metadata_is_refused(
    key: str, value: Any, reason: str, byte_level_tokenizer: Make
) -> None:
    with pytest.raises(GgufError, match=reason):
        build_tokenizer(plain(byte_level_tokenizer) | {f"tokenizer.ggml.{key}": value})


def test_an_id_beyond_the_tokens_is_no_special_token(byte_level_tokenizer: Make) -> None:
    metadata = plain(byte_level_tokenizer) | {"tokenizer.ggml.bos_token_id": 10**9}
    tokenizer, _ = build_tokenizer(metadata)
    assert tokenizer.bos_token_id is None


def test_defaults_of_the_pre_tokenizer(byte_level_tokenizer: Make) -> None:
    original = wrap(byte_level_tokenizer(KNOWN["llama-bpe"][0], ignore_merges=True, bos=True))
    metadata = vocabulary_metadata(original, vocab_size=600)
    values = {key: field.value for key, field in metadata.items()}
    del values["tokenizer.ggml.add_bos_token"]
    values["tokenizer.ggml.pre"] = "llama-v3"
    assert build_tokenizer(values)[0].encode("hi") == original.encode("hi")


def test_load_tokenizer_says_which_file_is_at_fault(tmp_path: Path) -> None:
    from llmopt.errors import CheckpointError

    path = tmp_path / "m.gguf"
    path.write_bytes(b"GGUF")
    with pytest.raises(CheckpointError, match=r"m\.gguf.*ends inside its header"):
        load_tokenizer(path)
