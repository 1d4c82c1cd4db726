"""Conversations to the tokens that a chat model was trained on.

The template is the model's own, a program in Jinja that runs in a sandbox; see `models.tokenizer`.

Knows nothing about the engine.
Law: a conversation that a template refuses is the user's error, in one sentence.
"""

from collections.abc import Mapping, Sequence

from llmopt.errors import UsageError
from llmopt.models.tokenizer import Tokenizer

Message = Mapping[str, str]


def user_turn(text: str, system: str | None = None) -> list[Message]:
    """A conversation of one question, behind a system prompt if there is one."""
    turns: list[Message] = [] if system is None else [{"role": "system", "content": system}]
    return [*turns, {"role": "user", "content": text}]


def encode_conversation(tokenizer: Tokenizer, messages: Sequence[Message]) -> list[int]:
    """Token ids of a conversation, up to where the model's answer begins.

    messages: {"role": "system", "user" or "assistant", "content": text} each.

    Raises:
        ModelError: the model has no chat template.
        UsageError: a message lacks a part, or the template refuses the conversation.
    """
    if isinstance(messages, Mapping | str) or not messages:
        raise UsageError(
            f"the conversation is {messages!r}", "Give a list of at least one message."
        )
    for message in messages:
        if not isinstance(message, Mapping) or not {"role", "content"} <= set(message):
            raise UsageError(
                f"the conversation has the message {message!r}",
                'Give each message as {"role": "user", "content": "..."}.',
            )
    return tokenizer.apply_chat_template(messages)
