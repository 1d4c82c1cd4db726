"""The tokenizer's face: what goes in comes out, and every end of text is known."""

import json
from pathlib import Path

import pytest
from tokenizers import Tokenizer as RustTokenizer
from tokenizers import decoders, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from llmopt.errors import CheckpointError, ModelError
from llmopt.models.tokenizer import load_tokenizer

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
