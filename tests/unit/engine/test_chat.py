from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tokenizers import pre_tokenizers

from llmopt.engine.chat import encode_conversation, user_turn
from llmopt.engine.llm import LLM
from llmopt.engine.sampling_params import SamplingParams
from llmopt.errors import ModelError, UsageError
from llmopt.models.tokenizer import Tokenizer

STRICT = (
    "{% for m in messages %}"
    "{% if m['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    "<|turn|>{{ m['role'] }}: {{ m['content'] }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|turn|>assistant: {% endif %}"
)


@pytest.fixture(scope="module")
def backend(byte_level_tokenizer: Callable[..., Any]) -> Any:
    backend = byte_level_tokenizer(pre_tokenizers.ByteLevel(add_prefix_space=False))
    backend.chat_template = STRICT
    return backend


@pytest.fixture
def tokenizer(backend: Any) -> Tokenizer:
    return Tokenizer(backend, [0])


def test_a_conversation_ends_where_the_answer_begins(tokenizer: Tokenizer, backend: Any) -> None:
    turns = [*user_turn("Hi"), {"role": "assistant", "content": "Ho"}, *user_turn("Hum")]
    assert backend.decode(encode_conversation(tokenizer, turns)) == (
        "<|turn|>user: Hi<|end|><|turn|>assistant: Ho<|end|><|turn|>user: Hum<|end|>"
        "<|turn|>assistant: "
    )


def test_a_system_prompt_comes_first() -> None:
    assert user_turn("Hi", "Be kind.") == [
        {"role": "system", "content": "Be kind."},
        {"role": "user", "content": "Hi"},
    ]


def test_what_the_template_refuses_is_said_in_one_sentence(tokenizer: Tokenizer) -> None:
    with pytest.raises(UsageError, match=r"of system, user \(System role not supported\)"):
        encode_conversation(tokenizer, user_turn("Hi", "Be kind."))


@pytest.mark.parametrize(
    ("messages", "message"),
    [
        ([], r"the conversation is \[\]"),
        ("Hi", "the conversation is 'Hi'"),
        ({"role": "user", "content": "Hi"}, "Give a list"),
        ([{"role": "user"}], "Give each message as"),
        (["Hi"], "has the message 'Hi'"),
    ],
)
def test_malformed_conversations_are_refused(
    tokenizer: Tokenizer, messages: Any, message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        encode_conversation(tokenizer, messages)


def test_a_template_cannot_leave_its_sandbox(backend: Any) -> None:
    import copy

    escaping = copy.deepcopy(backend)
    escaping.chat_template = "{{ messages.__class__.__mro__[1].__subclasses__() }}"
    with pytest.raises(UsageError, match="refuses"):
        encode_conversation(Tokenizer(escaping, [0]), user_turn("Hi"))


def test_llm_chat_generates_from_the_conversation(
    make_tiny_llama: Callable[..., Path], backend: Any
) -> None:
    path = make_tiny_llama(vocab_size=640, bos_token_id=1, eos_token_id=0)
    backend.save_pretrained(path)
    llm = LLM(path, num_blocks=64)
    params = SamplingParams(max_tokens=5, ignore_eos=True)
    first, second = llm.chat([user_turn("Hi"), user_turn("Ho")], params)
    prompt = encode_conversation(llm.tokenizer, user_turn("Hi"))
    assert first.prompt_token_ids == tuple(prompt)
    assert first.token_ids == llm.generate([prompt], params)[0].token_ids
    assert second.prompt_token_ids != first.prompt_token_ids


def test_a_model_without_a_template_cannot_chat(byte_level_tokenizer: Callable[..., Any]) -> None:
    plain = byte_level_tokenizer(pre_tokenizers.ByteLevel(False))
    plain.chat_template = None
    with pytest.raises(ModelError, match="no chat template"):
        encode_conversation(Tokenizer(plain, [0]), user_turn("Hi"))
