"""What is scored: pieces of a text as tokens, and how they were cut.

Knows nothing about models, files or statistics. The law it keeps: `protocol` and `description` say
how the windows were cut, because perplexities of windows that were cut otherwise cannot be
compared.
"""

from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from llmopt.errors import UsageError

ProtocolName = Literal["windows", "paper", "llama.cpp", "rolling"]


@dataclass(frozen=True, slots=True, eq=False)
class Window:
    """Tokens that a model reads at once. The last `num_scored` are scored, the others context.

    Nothing follows the last one, so that a model need not read it.
    """

    token_ids: Tensor  # int64 [n], n >= 2
    num_scored: int  # from 1 to n - 1
    num_bytes: int  # of the UTF-8 text that the scored tokens stand for

    @property
    def next_tokens(self) -> Tensor:
        """The scored tokens, int64 [num_scored]."""
        return self.token_ids[-self.num_scored :]


@dataclass(frozen=True, slots=True, eq=False)
class EvaluationWindows:
    """Windows of one text.

    num_words: words of the text that the windows cover, where the protocol counts them (`rolling`)
    """

    windows: tuple[Window, ...]
    text_name: str
    text_sha256: str
    protocol: ProtocolName
    description: str
    num_words: int | None = None

    @property
    def num_tokens(self) -> int:
        """Scored tokens."""
        return sum(window.num_scored for window in self.windows)

    @property
    def max_tokens(self) -> int:
        """Tokens of the longest window."""
        return max(len(window.token_ids) for window in self.windows)

    def check_length(self, limit: int) -> None:
        """Raise UsageError unless a model that reads at most `limit` tokens at once can read every
        window up to its last token.
        """
        num_read = self.max_tokens - 1
        if num_read > limit:
            raise UsageError(
                f"the model reads at most {limit} tokens at once, and the windows need {num_read}",
                f"Choose a window of at most {limit} tokens.",
            )

    def has_tokens_of(self, other: "EvaluationWindows") -> bool:
        """Whether both score the same tokens in the same context."""
        return len(self.windows) == len(other.windows) and all(
            own.num_scored == its.num_scored and torch.equal(own.token_ids, its.token_ids)
            for own, its in zip(self.windows, other.windows, strict=True)
        )

    def first(self, num_windows: int) -> "EvaluationWindows":
        """The first windows alone; of a part of the text the words are not known."""
        if num_windows == len(self.windows):
            return self
        return replace(self, windows=self.windows[:num_windows], num_words=None)
