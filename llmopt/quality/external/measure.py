"""The quality of a model in any runtime against its base: score, then summarize.

Knows nothing about files or servers. The law it keeps: the record says whose probabilities it is
of, and a lower bound of the divergence never counts as proof that there is none.
"""

from collections.abc import Callable
from dataclasses import replace

from llmopt.quality.external.sources import Source, SourceKind
from llmopt.quality.external.truncated import TruncatedSource, score_truncated
from llmopt.quality.noise import NoiseScores
from llmopt.quality.options import QualityOptions
from llmopt.quality.scores import OnWindow, score_windows
from llmopt.quality.source import LogitSource
from llmopt.quality.stopping import precision_goal
from llmopt.quality.summary import summarize
from llmopt.quality.windows import EvaluationWindows
from llmopt.results.schema import QualityRecord


def measure_source(
    target: Source,
    kind: SourceKind,
    base: LogitSource,
    windows: EvaluationWindows,
    options: QualityOptions,
    *,
    noise: Callable[[EvaluationWindows], NoiseScores] | None = None,
    on_window: OnWindow | None = None,
) -> QualityRecord:
    """The record of a target that `open_source` opened as `kind`, against the base.

    noise: measures the noise floor on the windows that were scored. A server's divergence is a
    lower bound: then "indistinguishable" would prove nothing and is left out, while "above noise"
    and "worse" hold. Raises as `score_windows`, `score_truncated` and `summarize`.
    """
    is_truncated = isinstance(target, TruncatedSource)
    goal = precision_goal(options)
    if isinstance(target, TruncatedSource):
        scores = score_truncated(target, base, windows, on_window=on_window, until=goal)
    else:
        scores = score_windows(target, base, windows, on_window=on_window, until=goal)
    record = summarize(
        scores,
        options,
        base_name=base.name,
        base_scheme=base.scheme,
        noise=None if noise is None else noise(scores.windows),
    )
    verdict = record.verdict
    if is_truncated and verdict is not None and verdict.label == "indistinguishable":
        verdict = None
    return replace(record, source=kind, lower_bound=is_truncated, verdict=verdict)
