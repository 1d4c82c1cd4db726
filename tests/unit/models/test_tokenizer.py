"""The tokenizer's face: what goes in comes out, and every end of text is known."""

import json
from pathlib import Path

import pytest
from tokenizers import Tokenizer as RustTokenizer
from tokenizers import decoders, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from llmopt.errors import CheckpointError, ModelError, UsageError
from llmopt.models.tokenizer import Tokenizer, load_tokenizer

TEMPLATE = "{% for m in messages %}<s>{{ m['content'] }}{% endfor %}<end>"


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """A byte-level tokenizer that puts BOS in front, as Llama's does."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {token: i for i, token in enumerate(["<s>", "</s>", "<end>", *alphabet])}
    inner = RustTokenizer(models.BPE(vocab=vocab, merges=[]))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    inner.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", 0)]
    )
    outer = PreTrainedTokenizerFast(
        tokenizer_object=inner,
        bos_token="<s>",
        eos_token="</s>",
        additional_special_tokens=["<end>"],
        model_max_length=8,
    )
    outer.chat_template = TEMPLATE
    outer.save_pretrained(tmp_path)
    return tmp_path


@pytest.mark.parametrize("text", ["plain", "  spaces\n\n and Ümläute ✓", ""])
def test_text_survives(directory: Path, text: str) -> None:
    tokenizer = load_tokenizer(directory)
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_special_tokens_are_added_unless_told_not_to(directory: Path) -> None:
    tokenizer = load_tokenizer(directory)
    plain = tokenizer.encode("ab", add_special_tokens=False)
    assert tokenizer.encode("ab") == [0, *plain]
    assert len(plain) == 2
    assert tokenizer.bos_token_id == 0
    assert tokenizer.vocab_size == 256 + 3


def test_a_text_longer_than_the_model_is_not_cut_and_warns_of_nothing(
    directory: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert len(load_tokenizer(directory).encode("a" * 100)) == 101
    assert "longer than" not in capfd.readouterr().err


def test_chat_is_templated_up_to_the_answer(directory: Path) -> None:
    tokenizer = load_tokenizer(directory)
    ids = tokenizer.apply_chat_template([{"role": "user", "content": "ab"}])
    assert ids == [0, *tokenizer.encode("ab", add_special_tokens=False), 2]


def test_without_a_chat_template_it_says_so(directory: Path) -> None:
    (directory / "chat_template.jinja").unlink()
    with pytest.raises(ModelError, match="no chat template"):
        load_tokenizer(directory).apply_chat_template([{"role": "user", "content": "x"}])


@pytest.mark.parametrize(
    ("config", "generation", "expected"),
    [
        (None, None, (1,)),
        ({"eos_token_id": 1}, {"eos_token_id": [1, 2]}, (1, 2)),
        ({"eos_token_id": 2}, None, (1, 2)),
        ({"eos_token_id": None}, {}, (1,)),
    ],
)
def test_ids_that_end_a_text_come_from_all_files(
    directory: Path,
    config: dict[str, object] | None,
    generation: dict[str, object] | None,
    expected: tuple[int, ...],
) -> None:
    for name, content in (("config.json", config), ("generation_config.json", generation)):
        if content is not None:
            content = {"model_type": "llama", **content} if name == "config.json" else content
            (directory / name).write_text(json.dumps(content))
    assert load_tokenizer(directory).eos_token_ids == expected


def test_no_tokenizer(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="has no tokenizer"):
        load_tokenizer(tmp_path)


def test_a_damaged_tokenizer(directory: Path) -> None:
    file = directory / "tokenizer.json"
    file.write_text(file.read_text()[:200])
    with pytest.raises(CheckpointError, match=r"tokenizer in .* cannot be read \("):
        load_tokenizer(directory)


def test_a_damaged_generation_config(directory: Path) -> None:
    (directory / "generation_config.json").write_text("[]")
    with pytest.raises(CheckpointError, match=r"generation_config\.json is not a JSON object"):
        load_tokenizer(directory)


@pytest.mark.parametrize("text", ["plain", "  spaces\n\n and Ümläute ✓🦜", "", "ß"])
@pytest.mark.parametrize("special", [True, False])
def test_ends_are_in_bytes_and_a_split_character_counts_for_its_first_token(
    directory: Path, text: str, special: bool
) -> None:
    tokenizer = load_tokenizer(directory)
    ids, ends = tokenizer.encode_with_ends(text, add_special_tokens=special)
    assert ids == tokenizer.encode(text, add_special_tokens=special)
    ends_of_characters = [len(text[: i + 1].encode()) for i in range(len(text))]
    one_per_byte = [
        end for char, end in zip(text, ends_of_characters, strict=True) for _ in char.encode()
    ]
    assert ends == ([0] if special else []) + one_per_byte


def test_ends_of_a_tokenizer_without_offsets_share_the_bytes_out() -> None:
    class Slow:
        is_fast = False

        def encode(self, text: str, **_: object) -> list[int]:
            return [5, 6, 7]

    assert Tokenizer(Slow(), []).encode_with_ends("aß✓x") == ([5, 6, 7], [2, 4, 7])


def test_the_end_of_text_is_the_tokenizers_own(directory: Path) -> None:
    assert load_tokenizer(directory).eos_token_id == 1


@pytest.mark.parametrize(
    "template", ["{{ raise_exception('no system prompt') }}", "{{ a.b }}", "{% if %}"]
)
def test_a_conversation_that_the_template_refuses(directory: Path, template: str) -> None:
    tokenizer = load_tokenizer(directory)
    tokenizer.backend.chat_template = template
    with pytest.raises(UsageError, match=r"refuses a conversation of system, user \(.+\)"):
        tokenizer.apply_chat_template(
            [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"}]
        )
