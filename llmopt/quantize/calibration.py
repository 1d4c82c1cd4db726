"""Calibration tokens: windows of one text, as many and as long as asked.

Knows nothing of models beyond their tokenizer. Law: every window is full of real text, so no
padding can ever enter a Hessian, and the same text, sizes and seed give the same windows.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from llmopt.data import TextName, read_text
from llmopt.errors import UsageError

BUNDLED_TEXT: TextName = "calibration"


class Encoder(Protocol):
    """The part of a tokenizer that calibration needs."""

    @property
    def bos_token_id(self) -> int | None:
        """The token that starts a text, if the model has one."""

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        """Return the token ids of a text."""


@dataclass(frozen=True, slots=True)
class CalibrationData:
    """Windows of calibration tokens, and where they came from.

    tokens: int64 [num_samples, sample_tokens]
    source: name of the text; text_sha256: hash of its UTF-8 bytes
    """

    tokens: Tensor
    source: str
    text_sha256: str
    seed: int

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
    num_samples: int = 16,
    sample_tokens: int = 512,
    seed: int = 0,
) -> CalibrationData:
    """Tokenize a text file, or the text that the package brings, and choose windows from it.

    A tokenizer that starts texts with a BOS token has one at the start of every window.
    Raises `UsageError` when the file cannot be read as UTF-8, sizes are not positive, or the text
    has too few tokens.
    """
    if num_samples < 1 or sample_tokens < 2:
        raise UsageError(
            f"{num_samples} calibration samples of {sample_tokens} tokens make no sense",
            "Ask for at least 1 sample of 2 tokens.",
        )
    text = read_text(BUNDLED_TEXT) if text_file is None else _read_file(text_file)
    source = f"bundled:{BUNDLED_TEXT}" if text_file is None else text_file.name
    token_ids = encoder.encode(text, add_special_tokens=True)
    bos = encoder.bos_token_id
    prefix = [bos] if bos is not None and token_ids[:1] == [bos] else []
    windows = choose_windows(
        token_ids[len(prefix) :],
        num_samples=num_samples,
        window_tokens=sample_tokens - len(prefix),
        seed=seed,
        source=source,
    )
    tokens = torch.tensor([prefix + list(window) for window in windows], dtype=torch.int64)
    return CalibrationData(tokens, source, hashlib.sha256(text.encode()).hexdigest(), seed)


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


def _read_file(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(
            f"the calibration text {path} cannot be read ({error})",
            "Give a plain text file in UTF-8.",
        ) from error
