"""Evaluation windows: a text, tokenized once and cut into pieces of equal length.

Knows nothing about models or statistics. The law it keeps: the same text, tokenizer and options
always give the same windows, and `EvaluationWindows.protocol` says in words how they were cut,
because perplexities measured on windows cut otherwise cannot be compared.
"""

import hashlib
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from llmopt.data import read_text
from llmopt.errors import UsageError
from llmopt.models.tokenizer import Tokenizer
from llmopt.quality.options import QualityOptions
from llmopt.recipe.schema import BUNDLED_TEXT


@dataclass(frozen=True, slots=True)
class EvaluationWindows:
    """Tokens to score, where they come from, and how they were cut."""

    token_ids: Tensor  # int64 [num_windows, window]
    text_name: str
    text_sha256: str
    protocol: str

    @property
    def num_windows(self) -> int:
        """Number of windows."""
        return self.token_ids.shape[0]

    @property
    def window(self) -> int:
        """Tokens per window; one less is scored, since the first token has nothing before it."""
        return self.token_ids.shape[1]


def load_windows(tokenizer: Tokenizer, options: QualityOptions) -> EvaluationWindows:
    """Read the text that the options name, tokenize it once, and cut the first windows from it.

    Windows do not overlap. A tokenizer that starts every sequence with BOS gets it at the start
    of every window, which then holds `window - 1` tokens of the text. Raises UsageError when the
    text cannot be read or is too short.
    """
    name, content = _read(options.text)
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UsageError(
            f"the text {name!r} is not UTF-8: byte {error.start} is 0x{content[error.start]:02x}",
            "Convert it to UTF-8, or give another text.",
        ) from error
    bos_token_id = _leading_bos(tokenizer)
    token_ids = tokenizer.encode(text, add_special_tokens=False)
    return EvaluationWindows(
        token_ids=_cut(token_ids, bos_token_id, name, options),
        text_name=name,
        text_sha256=hashlib.sha256(content).hexdigest(),
        protocol=_protocol(options, bos_token_id),
    )


def _read(text: str) -> tuple[str, bytes]:
    """Name and bytes of the bundled text or of a file."""
    if text == BUNDLED_TEXT:
        return BUNDLED_TEXT, read_text("evaluation").encode()
    path = Path(text)
    try:
        return path.name, path.read_bytes()
    except (OSError, ValueError) as error:  # ValueError: a null byte in the path
        reason = getattr(error, "strerror", None) or str(error)
        raise UsageError(
            f"the text {text!r} cannot be read: {reason}",
            f"Give a readable UTF-8 text file, or {BUNDLED_TEXT} for the text that llmopt brings.",
        ) from error


def _leading_bos(tokenizer: Tokenizer) -> int | None:
    """The BOS that this tokenizer puts before every sequence; None when it puts none."""
    if tokenizer.bos_token_id is None:
        return None
    marked = tokenizer.encode("a", add_special_tokens=True)
    return tokenizer.bos_token_id if marked[:1] == [tokenizer.bos_token_id] else None


def _cut(
    token_ids: list[int], bos_token_id: int | None, name: str, options: QualityOptions
) -> Tensor:
    """Cut the first windows off the tokens -> int64 [num_windows, window]."""
    stride = options.window if bos_token_id is None else options.window - 1
    num_needed = options.num_windows * stride
    if len(token_ids) < num_needed:
        num_fitting = len(token_ids) // stride
        fewer = f"at most {num_fitting} windows" if num_fitting >= 2 else "smaller windows"
        raise UsageError(
            f"the text {name!r} has {len(token_ids)} tokens, and {options.num_windows} windows of"
            f" {options.window} tokens need {num_needed}",
            f"Ask for {fewer}, or give a longer text.",
        )
    windows = torch.tensor(token_ids[:num_needed], dtype=torch.int64).view(-1, stride)
    if bos_token_id is None:
        return windows
    bos = torch.full((options.num_windows, 1), bos_token_id, dtype=torch.int64)
    return torch.cat([bos, windows], dim=1)


def _protocol(options: QualityOptions, bos_token_id: int | None) -> str:
    start = "no BOS" if bos_token_id is None else "BOS first in each"
    return (
        f"windows of {options.window} tokens, not overlapping, {start},"
        f" all {options.window - 1} next-token positions scored, first {options.num_windows}"
    )
