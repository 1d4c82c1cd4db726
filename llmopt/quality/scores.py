"""Two sources of logits on the same windows, paired token by token.

Knows nothing about averages over windows. The law it keeps: both read the same tokens, and every
statistic of a window is over the same positions.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

from llmopt.errors import ModelError, UsageError
from llmopt.quality.bootstrap import FloatArray
from llmopt.quality.divergence import TokenStatistics, compare_logits, concatenate
from llmopt.quality.source import LogitSource, rows_per_chunk
from llmopt.quality.stopping import PrecisionGoal
from llmopt.quality.windows import EvaluationWindows, Window

OnWindow = Callable[[int, int], None]  # (windows done, windows in all)


@dataclass(frozen=True, slots=True, eq=False)
class Scores:
    """What was scored: the windows, and one TokenStatistics for each of them."""

    windows: EvaluationWindows
    statistics: tuple[TokenStatistics, ...]

    @property
    def num_scored(self) -> FloatArray:
        """Scored tokens of each window, float64 [W]."""
        return np.array([len(window.kld) for window in self.statistics], dtype=np.float64)

    @property
    def kld_sums(self) -> FloatArray:
        """Sum of the KL divergence over each window's tokens, nats, float64 [W]."""
        return np.array([float(window.kld.sum()) for window in self.statistics])

    @property
    def log_ratio_sums(self) -> FloatArray:
        """Sum of log p_base - log p_target of the right token in each window, float64 [W]."""
        gaps = (window.base_log_prob - window.target_log_prob for window in self.statistics)
        return np.array([float(gap.sum()) for gap in gaps])


def score_windows(
    target: LogitSource,
    base: LogitSource,
    windows: EvaluationWindows,
    *,
    on_window: OnWindow | None = None,
    until: PrecisionGoal | None = None,
) -> Scores:
    """Score the target and the base, window by window in one pass of both.

    `on_window` hears of each finished window. With `until`, scoring ends at the first window after
    which the mean KL divergence is known that precisely, if that comes before the last window; see
    `llmopt.quality.stopping` for what stopping does to the interval. Raises UsageError when the two
    cannot be compared (another vocabulary, a window longer than one of them reads), ModelError
    when one of them gives NaN or infinite logits.
    """
    _check_sources(target, base, windows)
    statistics: list[TokenStatistics] = []
    sums: list[float] = []
    counts: list[float] = []
    for index, window in enumerate(windows.windows):
        scored = _score_window(target, base, window)
        if not scored.is_finite:
            raise _not_finite(scored, target, base, index)
        statistics.append(scored)
        sums.append(float(scored.kld.sum()))
        counts.append(float(len(scored.kld)))
        if on_window is not None:
            on_window(index + 1, len(windows.windows))
        if until is not None and until.is_reached(np.array(sums), np.array(counts)):
            break
    return Scores(windows.first(len(statistics)), tuple(statistics))


def _check_sources(target: LogitSource, base: LogitSource, windows: EvaluationWindows) -> None:
    if target.vocab_size != base.vocab_size:
        raise UsageError(
            f"the model has a vocabulary of {target.vocab_size} tokens and its base one of "
            f"{base.vocab_size}",
            "Compare a model with the one that it was made from.",
        )
    windows.check_length(min(target.max_tokens, base.max_tokens))


def _score_window(target: LogitSource, base: LogitSource, window: Window) -> TokenStatistics:
    """Statistics of the scored positions of one window."""
    chunks = zip(
        base.chunks(window),
        target.chunks(window),
        torch.split(window.next_tokens, rows_per_chunk(target.vocab_size)),
        strict=True,
    )
    return concatenate([compare_logits(*chunk) for chunk in chunks])


def _not_finite(
    scored: TokenStatistics, target: LogitSource, base: LogitSource, index: int
) -> ModelError:
    of_base = not bool(scored.base_log_prob.isfinite().all())
    model = f"the base {base.name!r}" if of_base else f"the model {target.name!r}"
    return ModelError(
        f"{model} gives NaN or infinite logits in window {index + 1}",
        "Run it in float32 or bfloat16; if that does not help, its weights are damaged: "
        + ("fetch it again." if of_base else "make it again."),
    )
