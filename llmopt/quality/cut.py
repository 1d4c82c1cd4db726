"""What a protocol makes of a text: windows, and the sentence that says how they were cut.

Knows nothing about any one protocol. The law it keeps: a text that is too short for what was asked
is refused with what it would give, never cut into fewer windows in silence.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from llmopt.errors import UsageError
from llmopt.models.tokenizer import Tokenizer
from llmopt.quality.options import QualityOptions
from llmopt.quality.windows import Window

MIN_WINDOWS = 2  # fewer have no spread to make an interval from


@dataclass(frozen=True, slots=True)
class Cut:
    """Windows of a text, in its order, and in words how they were cut.

    num_words: of the documents that the windows cover, where the protocol counts them
    """

    windows: tuple[Window, ...]
    description: str
    num_words: int | None = None


def make_window(token_ids: Sequence[int], num_scored: int, num_bytes: int) -> Window:
    """Window whose last `num_scored` tokens stand for `num_bytes` of text."""
    assert 1 <= num_scored < len(token_ids), f"{num_scored} scored of {len(token_ids)}"
    return Window(torch.tensor(token_ids, dtype=torch.int64), num_scored, num_bytes)


def span_bytes(ends: Sequence[int], start: int, stop: int) -> int:
    """Bytes of the tokens from `start` to `stop`, given where each token ends."""
    return ends[stop - 1] - (ends[start - 1] if start else 0)


def leading_bos(tokenizer: Tokenizer) -> int | None:
    """The BOS that this tokenizer puts before every sequence; None when it puts none."""
    if tokenizer.bos_token_id is None:
        return None
    marked = tokenizer.encode("a", add_special_tokens=True)
    return tokenizer.bos_token_id if marked[:1] == [tokenizer.bos_token_id] else None


def count_windows(num_tokens: int, stride: int, text_name: str, options: QualityOptions) -> int:
    """How many windows to cut off tokens, each taking `stride` of them. Raises UsageError."""
    fitting = num_tokens // stride
    wanted = MIN_WINDOWS if options.num_windows is None else options.num_windows
    if fitting < wanted:
        raise UsageError(
            f"the text {text_name!r} has {num_tokens} tokens, and {wanted} windows of"
            f" {options.window_size} tokens need {wanted * stride}",
            f"Ask for {fewer_windows(fitting)}, or give a longer text.",
        )
    return fitting if options.num_windows is None else wanted


def fewer_windows(fitting: int) -> str:
    """What to ask for where only so many windows fit."""
    return f"at most {fitting} windows" if fitting >= MIN_WINDOWS else "smaller windows"


def which_windows(count: int, options: QualityOptions) -> str:
    """Which of the text's windows were taken, in words."""
    return f"all {count}" if options.num_windows is None else f"first {count}"
