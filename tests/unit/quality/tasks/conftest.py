"""A tiny random model with a tokenizer that fits it."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from llmopt.models.loader import load_model
from llmopt.models.tokenizer import Tokenizer
from llmopt.quality.tasks.score import TaskModel


@pytest.fixture(scope="session")
def make_tokenizer(byte_level_tokenizer: Callable[..., Any]) -> Callable[..., Tokenizer]:
    """600 ids; id 0 is EOS, id 1 BOS, which is put in front of every text if `bos`."""
    from tokenizers import pre_tokenizers

    def make(*, bos: bool = False) -> Tokenizer:
        splitter = pre_tokenizers.ByteLevel(add_prefix_space=False)
        return Tokenizer(byte_level_tokenizer(splitter, bos=bos), [0])

    return make


@pytest.fixture(scope="session")
def make_task_model(
    make_tiny_llama: Callable[..., Path], make_tokenizer: Callable[..., Tokenizer]
) -> Callable[..., TaskModel]:
    def make(*, seed: int = 0, **overrides: object) -> TaskModel:
        path = make_tiny_llama(seed=seed, vocab_size=600, **overrides)
        return TaskModel(load_model(path, dtype="float32"), make_tokenizer(), f"tiny-{seed}")

    return make


@pytest.fixture(scope="session")
def task_model(make_task_model: Callable[..., TaskModel]) -> TaskModel:
    return make_task_model()
