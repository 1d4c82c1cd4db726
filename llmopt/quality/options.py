"""What to measure quality on and how sure to be: options that are valid by construction.

Knows nothing about models or files. The law it keeps: options that exist are usable.
"""

from dataclasses import dataclass

from llmopt.errors import UsageError
from llmopt.recipe.schema import BUNDLED_TEXT


@dataclass(frozen=True, slots=True)
class QualityOptions:
    """The text, how it is cut, and how the intervals are made. Raises UsageError if impossible."""

    text: str = BUNDLED_TEXT  # or the path of a UTF-8 text file
    window: int = 512  # tokens
    num_windows: int = 16
    confidence: float = 0.95
    num_resamples: int = 10_000  # of the bootstrap
    seed: int = 0  # of the bootstrap

    def __post_init__(self) -> None:
        if self.window < 2:
            raise UsageError(
                f"a window of {self.window} tokens has no next token to score",
                "Choose a window of at least 2 tokens; 512 is usual.",
            )
        if self.num_windows < 2:
            raise UsageError(
                f"{self.num_windows} windows give no confidence interval",
                "Choose at least 2 windows; 16 or more are usual.",
            )
        if not 0 < self.confidence < 1:
            raise UsageError(
                f"the confidence is {self.confidence}",
                "Choose a confidence between 0 and 1; 0.95 is usual.",
            )
        if self.num_resamples < 100:
            raise UsageError(
                f"{self.num_resamples} bootstrap resamples are too few for an interval",
                "Choose at least 100 resamples; 10000 are usual.",
            )
