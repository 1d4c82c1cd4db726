from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tokenizers import pre_tokenizers

from llmopt.engine.speculation.config import SpeculationConfig
from llmopt.engine.speculation.vocabulary import check_draft_tokenizer
from llmopt.errors import UsageError
from llmopt.models.tokenizer import load_tokenizer

MakeTokenizer = Callable[..., Any]


def save(tokenizer: Any, model: Path) -> str:
    tokenizer.save_pretrained(model)
    return f"draft:{model}"


def test_the_same_tokens_pass_and_others_are_refused(
    make_tiny_llama: Callable[..., Path],
    byte_level_tokenizer: MakeTokenizer,
    sentence_piece_tokenizer: MakeTokenizer,
) -> None:
    ours = byte_level_tokenizer(pre_tokenizers.ByteLevel(add_prefix_space=False))
    same = save(ours, make_tiny_llama(vocab_size=600))
    other = save(sentence_piece_tokenizer(prefix=False), make_tiny_llama(vocab_size=600))
    target = load_tokenizer(Path(same.removeprefix("draft:")))
    check_draft_tokenizer(target, SpeculationConfig(same))
    check_draft_tokenizer(target, SpeculationConfig("ngram"))
    with pytest.raises(UsageError, match=r"of \d+ token ids mean other tokens to the draft model"):
        check_draft_tokenizer(target, SpeculationConfig(other))


def test_a_special_token_of_another_name_is_tolerated(
    make_tiny_llama: Callable[..., Path], byte_level_tokenizer: MakeTokenizer
) -> None:
    ours = byte_level_tokenizer(pre_tokenizers.ByteLevel(add_prefix_space=False))
    target = load_tokenizer(Path(save(ours, make_tiny_llama()).removeprefix("draft:")))
    path = make_tiny_llama()
    renamed = save(ours, path)
    for file in ("tokenizer.json", "tokenizer_config.json"):
        (path / file).write_text((path / file).read_text().replace("[tool]", "[call]"))
    check_draft_tokenizer(target, SpeculationConfig(renamed))
