"""Calibration tokens: windows of text, as many and as long as asked.

Knows nothing of models beyond their tokenizer. Law: every window is full of real text, so no
padding can ever enter a Hessian; what is left over is counted; and the same text, sizes and seed
give the same windows.
"""

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from llmopt.errors import UsageError
from llmopt.quantize.calibration_source import (
    BUNDLED,
    SELF,
    Corpus,
    Document,
    open_corpus,
    text_corpus,
)

_SEPARATOR = "\n\n"  # between plain documents


class Encoder(Protocol):
    """The part of a tokenizer that calibration needs."""

    @property
    def bos_token_id(self) -> int | None:
        """The token that starts a text, if the model has one."""

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        """Return the token ids of a text."""


@runtime_checkable
class ChatEncoder(Encoder, Protocol):
    """An encoder that renders conversations, where the model has a chat template."""

    @property
    def has_chat_template(self) -> bool:
        """Whether the model has one."""

    def apply_chat_template(
        self, messages: Sequence[Mapping[str, str]], *, add_generation_prompt: bool = True
    ) -> list[int]:
        """Return the token ids of a conversation. `UsageError` if the template refuses it."""


@dataclass(frozen=True, slots=True)
class CalibrationData:
    """Windows of calibration tokens, and where they came from.

    tokens: int64 [num_samples, sample_tokens]
    source: name of the text
    text_sha256: of the UTF-8 bytes of a text, of several documents as JSON, or of token ids
    num_documents: texts and conversations that were read; num_chats: conversations among them
    unused_tokens: tokens of the text that are in no window
    """

    tokens: Tensor
    source: str
    text_sha256: str
    seed: int
    num_documents: int = 1
    num_chats: int = 0
    unused_tokens: int = 0

    @property
    def num_samples(self) -> int:
        """Number of windows."""
        return self.tokens.shape[0]

    @property
    def sample_tokens(self) -> int:
        """Tokens per window."""
        return self.tokens.shape[1]


def load_calibration(
    encoder: Encoder,
    text_file: Path | None = None,
    *,
    num_samples: int | None = 16,
    sample_tokens: int = 512,
    seed: int = 0,
) -> CalibrationData:
    """Tokenize a text file, or the text that the package brings, and choose windows from it.

    Raises as `pack_corpus`, and `UsageError` when the file cannot be read as UTF-8.
    """
    _check_sizes(num_samples, sample_tokens)
    corpus = open_corpus(BUNDLED) if text_file is None else text_corpus(text_file)
    return pack_corpus(
        encoder, corpus, num_samples=num_samples, sample_tokens=sample_tokens, seed=seed
    )


def pack_corpus(
    encoder: Encoder,
    corpus: Corpus,
    *,
    num_samples: int | None = 16,
    sample_tokens: int = 512,
    seed: int = 0,
) -> CalibrationData:
    """Tokenize documents one after the other and choose windows from the whole.

    Conversations go through the chat template; plain documents are separated by an empty line. A
    tokenizer that starts texts with a BOS token has one at the start of every window. `num_samples`
    None takes every window that fits. A streamed corpus is read until there are tokens enough.

    Raises `UsageError` when sizes are not positive, the text has too few tokens, or a conversation
    meets a model without a chat template, or a template that refuses it.
    """
    _check_sizes(num_samples, sample_tokens)
    if corpus.streamed and num_samples is None:
        raise UsageError(
            f"{corpus.name} is streamed and may have no end", "Say how many samples to take."
        )
    enough = num_samples * sample_tokens if corpus.streamed and num_samples else None
    token_ids: list[int] = []
    documents: list[Document] = []
    for document in corpus.documents:
        token_ids += _encode_document(encoder, document, is_first=not documents)
        documents.append(document)
        if enough is not None and len(token_ids) >= enough:
            break
    windows = _full_windows(encoder, token_ids, num_samples, sample_tokens, seed, corpus.name)
    has_template = _chat_encoder(encoder) is not None
    return CalibrationData(
        tokens=windows,
        source=corpus.name,
        text_sha256=_sha256(documents),
        seed=seed,
        num_documents=len(documents),
        num_chats=sum(has_template and document.messages is not None for document in documents),
        unused_tokens=_unused(len(token_ids), windows, encoder),
    )


def pack_samples(
    encoder: Encoder,
    samples: Iterable[Sequence[int]],
    *,
    num_samples: int | None = 16,
    sample_tokens: int = 512,
    seed: int = 0,
) -> CalibrationData:
    """Choose windows from token ids that the model itself generated, one sample after the other.

    samples: without the BOS token that they were generated from. Raises as `pack_corpus`.
    """
    _check_sizes(num_samples, sample_tokens)
    texts = [list(sample) for sample in samples]
    token_ids = [token_id for text in texts for token_id in text]
    windows = _full_windows(encoder, token_ids, num_samples, sample_tokens, seed, SELF)
    return CalibrationData(
        tokens=windows,
        source=SELF,
        text_sha256=hashlib.sha256(torch.tensor(token_ids).numpy().tobytes()).hexdigest(),
        seed=seed,
        num_documents=len(texts),
        unused_tokens=_unused(len(token_ids), windows, encoder),
    )


def leading_bos(encoder: Encoder) -> int | None:
    """The BOS token that this tokenizer puts before every text; None where it puts none."""
    bos = encoder.bos_token_id
    return bos if bos is not None and encoder.encode("")[:1] == [bos] else None


def choose_windows(
    token_ids: Sequence[int], *, num_samples: int, window_tokens: int, seed: int, source: str
) -> list[Sequence[int]]:
    """Cut the text into `num_samples` equal stretches and take a random window from each.

    Windows never overlap and cover the text evenly. Raises `UsageError` naming `source` when a
    stretch would be shorter than a window.
    """
    needed = num_samples * window_tokens
    if len(token_ids) < needed:
        raise UsageError(
            f"{source} has {len(token_ids):,} tokens, and {num_samples} calibration samples of "
            f"{window_tokens} need {needed:,}",
            "Give a longer text, or ask for fewer or shorter samples.",
        )
    stretch = len(token_ids) // num_samples
    generator = torch.Generator().manual_seed(seed)
    offsets = torch.randint(stretch - window_tokens + 1, (num_samples,), generator=generator)
    starts = [i * stretch + offset for i, offset in enumerate(offsets.tolist())]
    return [token_ids[start : start + window_tokens] for start in starts]


def _full_windows(
    encoder: Encoder,
    token_ids: Sequence[int],
    num_samples: int | None,
    sample_tokens: int,
    seed: int,
    source: str,
) -> Tensor:
    """Windows -> int64 [num_samples, sample_tokens], each with the tokenizer's BOS in front."""
    bos = leading_bos(encoder)
    prefix = [] if bos is None else [bos]
    window = sample_tokens - len(prefix)
    windows = choose_windows(
        token_ids,
        num_samples=num_samples or max(len(token_ids) // window, 1),
        window_tokens=window,
        seed=seed,
        source=source,
    )
    return torch.tensor([[*prefix, *one] for one in windows], dtype=torch.int64)


def _encode_document(encoder: Encoder, document: Document, *, is_first: bool) -> list[int]:
    """Token ids of one document and of what separates it from the one before."""
    chat = _chat_encoder(encoder)
    if chat is not None and document.messages is not None:
        answer_is_next = document.messages[-1]["role"] != "assistant"
        return chat.apply_chat_template(document.messages, add_generation_prompt=answer_is_next)
    if document.text is None:
        raise UsageError(
            "the calibration data has conversations, and this model has no chat template",
            "Give plain texts, or calibrate a chat model.",
        )
    separator = "" if is_first else _SEPARATOR
    return encoder.encode(separator + document.text, add_special_tokens=False)


def _chat_encoder(encoder: Encoder) -> ChatEncoder | None:
    """The same encoder, if it can render conversations."""
    return encoder if isinstance(encoder, ChatEncoder) and encoder.has_chat_template else None


def _unused(num_tokens: int, windows: Tensor, encoder: Encoder) -> int:
    used = windows.shape[1] - (leading_bos(encoder) is not None)
    return num_tokens - windows.shape[0] * used


def _sha256(documents: Sequence[Document]) -> str:
    """Hash one plain text as it is, and anything else as JSON lines."""
    if len(documents) == 1 and documents[0].messages is None:
        return hashlib.sha256((documents[0].text or "").encode()).hexdigest()
    digest = hashlib.sha256()
    for document in documents:
        line = json.dumps([document.text, document.messages], ensure_ascii=False)
        digest.update(line.encode() + b"\n")
    return digest.hexdigest()


def _check_sizes(num_samples: int | None, sample_tokens: int) -> None:
    if sample_tokens < 2 or (num_samples is not None and num_samples < 1):
        raise UsageError(
            f"{num_samples} calibration samples of {sample_tokens} tokens make no sense",
            "Ask for at least 1 sample of 2 tokens.",
        )
