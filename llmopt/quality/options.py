"""What to measure quality on and how sure to be: options that are valid by construction.

Knows nothing about models or files. The law it keeps: options that exist are usable.
"""

from dataclasses import dataclass
from typing import Final, get_args

from llmopt.errors import UsageError
from llmopt.quality.windows import ProtocolName
from llmopt.recipe.schema import BUNDLED_TEXT

# Tokens per window where none are given: what the protocol's published numbers were measured with.
DEFAULT_WINDOWS: Final[dict[ProtocolName, int]] = {
    "windows": 512,
    "paper": 2048,
    "llama.cpp": 512,
    "rolling": 2048,
}
_MIN_WINDOW = 2
_MIN_LLAMA_CPP_WINDOW = 3  # the second half of a shorter one has no next token


@dataclass(frozen=True, slots=True)
class QualityOptions:
    """The text, how it is cut, and how the intervals are made. Raises UsageError if impossible.

    text: `bundled`, `wikitext-2`, or the path of a UTF-8 text file
    window: tokens; None: the protocol's own, which `window_size` gives. In `rolling`, the tokens
        that a full window scores
    num_windows: how many from the start of the text; None: all that it gives. `rolling` takes
        whole documents until there are at least so many
    until_ci: stop once the interval of the mean divergence is at most this wide to either side,
        as a share of the mean (0.05: 5 %); `num_windows` still bounds it
    """

    text: str = BUNDLED_TEXT
    protocol: ProtocolName = "windows"
    window: int | None = None
    num_windows: int | None = 16
    until_ci: float | None = None
    confidence: float = 0.95
    num_resamples: int = 10_000  # of the bootstrap
    seed: int = 0  # of the bootstrap

    def __post_init__(self) -> None:
        if self.protocol not in get_args(ProtocolName):
            raise UsageError(
                f"there is no protocol {self.protocol!r}",
                f"Choose one of {', '.join(get_args(ProtocolName))}.",
            )
        self._check_windows()
        self._check_intervals()

    @property
    def window_size(self) -> int:
        """Tokens per window: those asked for, or the protocol's own."""
        return DEFAULT_WINDOWS[self.protocol] if self.window is None else self.window

    def _check_windows(self) -> None:
        least = _MIN_LLAMA_CPP_WINDOW if self.protocol == "llama.cpp" else _MIN_WINDOW
        if self.window_size < least:
            raise UsageError(
                f"a window of {self.window} tokens has no next token to score",
                f"Choose a window of at least {least} tokens; "
                f"{DEFAULT_WINDOWS[self.protocol]} is usual.",
            )
        if self.num_windows is not None and self.num_windows < 2:
            raise UsageError(
                f"{self.num_windows} windows give no confidence interval",
                "Choose at least 2 windows; 16 or more are usual.",
            )

    def _check_intervals(self) -> None:
        if self.until_ci is not None and not 0 < self.until_ci < 1:
            raise UsageError(
                f"the interval to stop at is {self.until_ci} of the mean",
                "Choose a share between 0 and 1; 0.05 is usual.",
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
