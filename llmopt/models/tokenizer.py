"""Text to token ids and back, with the ids that begin and end a text.

A thin face over transformers' fast tokenizers; knows nothing about models. The law: no code that
comes with a model is ever run (`trust_remote_code=False`), and every id that may end an answer is
known, wherever the model's files name it.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any

from llmopt.errors import CheckpointError, ModelError, UsageError
from llmopt.formats.gguf import GgufCheckpoint
from llmopt.formats.gguf_header import GgufError
from llmopt.models.gguf_tokenizer import build_tokenizer

_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json")


class Tokenizer:
    """What the rest of llmopt needs of a tokenizer."""

    def __init__(self, tokenizer: Any, eos_token_ids: Iterable[int]) -> None:
        self._tokenizer = tokenizer
        self.eos_token_ids: tuple[int, ...] = tuple(sorted(set(eos_token_ids)))

    @property
    def backend(self) -> Any:
        """transformers' own tokenizer, for whoever writes it in another format."""
        return self._tokenizer

    @property
    def bos_token_id(self) -> int | None:
        """The id that begins a text, if the model has one (whether or not `encode` adds it)."""
        token_id: int | None = self._tokenizer.bos_token_id
        return token_id

    @property
    def eos_token_id(self) -> int | None:
        """The id that ends a text, if the tokenizer names one; `eos_token_ids` has all others."""
        token_id: int | None = self._tokenizer.eos_token_id
        return token_id

    @property
    def vocab_size(self) -> int:
        """Number of ids, special tokens included."""
        return len(self._tokenizer)

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        """Token ids of a text; special tokens as the model was trained with, unless told not to."""
        ids: list[int] = self._tokenizer.encode(
            text, add_special_tokens=add_special_tokens, verbose=False
        )
        return ids

    def encode_with_ends(
        self, text: str, add_special_tokens: bool = True
    ) -> tuple[list[int], list[int]]:
        """Token ids of a text, as `encode` gives them, and after how many of its bytes each ends.

        The ends, in bytes of UTF-8, never go down, so that the bytes of any run of tokens are the
        difference of two ends. A character that is split between tokens counts for the first of
        them; white space that a tokenizer drops counts for the token after it; special tokens
        count for nothing. A tokenizer that does not know where its tokens lie (a slow one) shares
        the bytes out evenly.
        """
        if not self._tokenizer.is_fast:
            ids = self.encode(text, add_special_tokens)
            total = len(text.encode())
            return ids, [total * (index + 1) // len(ids) for index in range(len(ids))]
        encoding = self._tokenizer(
            text,
            add_special_tokens=add_special_tokens,
            return_offsets_mapping=True,
            verbose=False,
        )
        stops = accumulate((stop for _, stop in encoding["offset_mapping"]), max)
        return encoding["input_ids"], _byte_positions(text, stops)

    def decode(self, ids: Sequence[int]) -> str:
        """The text of token ids, without special tokens."""
        text: str = self._tokenizer.decode(list(ids), skip_special_tokens=True)
        return text

    @property
    def has_chat_template(self) -> bool:
        """Whether the model has a chat template."""
        return self._tokenizer.chat_template is not None

    def apply_chat_template(
        self, messages: Sequence[Mapping[str, str]], *, add_generation_prompt: bool = True
    ) -> list[int]:
        """Token ids of a conversation, by default up to where the model's answer begins.

        messages: {"role": ..., "content": ...} each. Raises ModelError without a chat template, and
        UsageError where the template refuses the conversation.
        """
        from jinja2 import TemplateError

        if not self.has_chat_template:
            raise ModelError(
                "this model has no chat template", "Give a plain prompt, or use a chat model."
            )
        try:
            ids: list[int] = self._tokenizer.apply_chat_template(
                [dict(message) for message in messages],
                add_generation_prompt=add_generation_prompt,
                return_dict=False,
            )
        except TemplateError as error:
            roles = ", ".join(message["role"] for message in messages)
            raise UsageError(
                f"the model's chat template refuses a conversation of {roles} ({error})",
                "Many templates take no system prompt, or want user and assistant in turn.",
            ) from error
        return ids


def _byte_positions(text: str, positions: Iterable[int]) -> list[int]:
    """Positions in characters, none before the last, as positions in the UTF-8 bytes."""
    if text.isascii():
        return list(positions)
    converted = []
    num_bytes = last = 0
    for position in positions:
        num_bytes += len(text[last:position].encode())
        last = position
        converted.append(num_bytes)
    return converted


def load_tokenizer(path: str | Path) -> Tokenizer:
    """The tokenizer of a model directory or of a GGUF file. Raises CheckpointError: missing or
    damaged.
    """
    if Path(path).is_file():
        return _gguf_tokenizer(Path(path))
    return _directory_tokenizer(Path(path))


def _gguf_tokenizer(path: Path) -> Tokenizer:
    try:
        return Tokenizer(*build_tokenizer(GgufCheckpoint(path).metadata))
    except GgufError as error:
        raise CheckpointError(
            f"{path} cannot be used: {error}", "Use a file made by a current converter."
        ) from error


def _directory_tokenizer(directory: Path) -> Tokenizer:
    from transformers import AutoTokenizer

    if not any((directory / name).is_file() for name in _FILES):
        raise CheckpointError(
            f"{directory} has no tokenizer (none of {', '.join(_FILES)})",
            "Copy the tokenizer files of the model into it.",
        )
    try:
        tokenizer = AutoTokenizer.from_pretrained(
            str(directory), use_fast=True, trust_remote_code=False, local_files_only=True
        )
    except Exception as error:  # the Rust tokenizer raises bare Exception for a damaged file
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise CheckpointError(
            f"the tokenizer in {directory} cannot be read ({reason})", "Fetch its files again."
        ) from error
    return Tokenizer(tokenizer, _eos_token_ids(directory, tokenizer.eos_token_id))


def _eos_token_ids(directory: Path, own: int | None) -> set[int]:
    """Ids that end an answer: the tokenizer's, and those of config.json and generation_config.json.

    Chat models often name the end of a turn in only one of the three.
    """
    found = set() if own is None else {own}
    for name in ("config.json", "generation_config.json"):
        file = directory / name
        if not file.is_file():
            continue
        try:
            ids = json.loads(file.read_text(encoding="utf-8")).get("eos_token_id")
        except (ValueError, AttributeError) as error:
            raise CheckpointError(f"{file} is not a JSON object", "Fetch it again.") from error
        found.update([ids] if isinstance(ids, int) else ids or [])
    return found
