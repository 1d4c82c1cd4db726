"""The quality of one source of logits against its base: score, then summarize.

Knows nothing about files, methods or how the weights came to be. The law it keeps: one record is of
one target, one base and one set of windows.
"""

from llmopt.quality.noise import NoiseScores
from llmopt.quality.options import QualityOptions
from llmopt.quality.scores import OnWindow, score_windows
from llmopt.quality.source import LogitSource
from llmopt.quality.stopping import precision_goal
from llmopt.quality.summary import summarize
from llmopt.quality.windows import EvaluationWindows
from llmopt.results.schema import QualityRecord


def measure_quality(
    target: LogitSource,
    base: LogitSource,
    windows: EvaluationWindows,
    options: QualityOptions,
    *,
    noise: NoiseScores | None = None,
    on_window: OnWindow | None = None,
) -> QualityRecord:
    """Score the target and the base on the windows, until the interval is as narrow as asked.

    `on_window` hears of each finished window. A model compared with itself has a KL divergence of
    exactly 0 and agrees everywhere. Raises as `score_windows` and `summarize`.
    """
    scores = score_windows(
        target, base, windows, on_window=on_window, until=precision_goal(options)
    )
    return summarize(scores, options, base_name=base.name, base_scheme=base.scheme, noise=noise)
