"""The damage atlas: which parts of a model cause its loss against the base, and where it shows.

Knows nothing about files or layouts. The law it keeps: every part is judged by the same scored
positions, one window in memory at a time, and each interval is over windows.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from llmopt.errors import ModelError, UsageError
from llmopt.models.decoder import Decoder
from llmopt.models.tokenizer import Tokenizer
from llmopt.quality.atlas_parts import Part, Transplant, check_same_shape, list_parts
from llmopt.quality.atlas_report import HALVES, AtlasPart, AtlasReport
from llmopt.quality.bootstrap import FloatArray, ratio_interval
from llmopt.quality.divergence import TokenStatistics, compare_logits, concatenate
from llmopt.quality.options import QualityOptions
from llmopt.quality.scores import Scores
from llmopt.quality.source import ModelLogits, rows_per_chunk
from llmopt.quality.summary import summarize
from llmopt.quality.windows import EvaluationWindows, Window
from llmopt.quality.worst_tokens import WorstTokens

ATLAS_WINDOWS = 4  # by default: of 512 tokens, minutes on two cores for a model of 135M
NUM_WORST = 20

OnProgress = Callable[[int, int], None]  # (work done, work in all)


def measure_atlas(
    target: Decoder,
    base: Decoder,
    windows: EvaluationWindows,
    options: QualityOptions,
    tokenizer: Tokenizer,
    on_progress: OnProgress | None = None,
    *,
    detail: bool = False,
    num_worst: int = NUM_WORST,
    target_name: str = "model",
    base_name: str = "base",
    base_scheme: str = "",
) -> AtlasReport:
    """Put one part of the target after the other into the base, and measure each.

    For every window the base's hidden states at the input of each block are computed once and kept
    (as are its logits [scored, V]), so that a block costs only the blocks behind it and the head:
    about L / 2 passes of the base per window for L blocks. With `detail`, attention and MLP of each
    block are measured on their own as well, which takes three times as long.

    A replaced part computes in the target's dtype; where that is not the base's, the rounding
    of one part counts as the part's loss. Load both with one dtype to see the weights alone.
    `options` gives the confidence and the bootstrap. `on_progress` hears of the work in blocks
    run on a window.

    Raises UsageError when the models or windows do not fit together, ModelError when the target,
    or the base with a part of it, gives NaN or infinite logits.
    """
    _check(target, base, windows)
    parts = list_parts(len(base.blocks), detail=detail)
    clock = _Clock(parts, base, len(windows.windows), on_progress)
    worst = WorstTokens(num_worst)
    whole: list[TokenStatistics] = []
    sums: list[list[_Sums]] = []  # [W][parts]
    for index, window in enumerate(windows.windows):
        transplant = Transplant(target, base, window)
        base_chunks = list(transplant.base_chunks())
        whole.append(_score_target(target, base_chunks, index, window, worst))
        clock.advance(len(base.blocks))
        sums.append([])
        for part in parts:
            sums[-1].append(_score_part(part, transplant, base_chunks, window))
            clock.advance(_cost(part, base))
    measured = [
        _atlas_part(part, [window[row] for window in sums], options)
        for row, part in enumerate(parts)
    ]
    shown = tuple(part for part in measured if part.layer is not None or part.kld_mean > 0)
    scores = Scores(windows, tuple(whole))
    return AtlasReport(
        target_name=target_name,
        quality=summarize(scores, options, base_name=base_name, base_scheme=base_scheme),
        parts=shown,
        parts_kld_sum=sum(part.kld_mean for part in shown if part.kind not in HALVES),
        worst_tokens=worst.collect(tokenizer, windows.windows),
    )


@dataclass(frozen=True, slots=True)
class _Sums:
    """Of one part over the scored tokens of one window."""

    num_tokens: int
    kld: float
    num_same_top1: int


class _Clock:
    """Adds up the work that is done, in blocks run on a window."""

    def __init__(
        self, parts: Sequence[Part], base: Decoder, num_windows: int, on_progress: OnProgress | None
    ) -> None:
        per_window = len(base.blocks) + sum(_cost(part, base) for part in parts)
        self.total = num_windows * per_window
        self.done = 0
        self._on_progress = on_progress

    def advance(self, cost: int) -> None:
        """Count finished work."""
        self.done += cost
        if self._on_progress is not None:
            self._on_progress(self.done, self.total)


def _cost(part: Part, base: Decoder) -> int:
    """What measuring a part takes, in blocks: those behind it, itself, and the head."""
    num_blocks = len(base.blocks)
    block_bytes = max(1, sum(linear.weight_bytes for linear in base.blocks[0].linears))
    head = max(1, round(base.lm_head.weight_bytes / block_bytes))
    if part.kind in ("final norm", "head"):
        return head
    return head + num_blocks - (part.layer or 0)


def _check(target: Decoder, base: Decoder, windows: EvaluationWindows) -> None:
    check_same_shape(target.config, base.config)
    assert target.device == base.device, "both models are on one device"
    if len(windows.windows) < 2:
        raise UsageError(
            "one window gives no confidence interval",
            "Choose at least 2 windows, or a longer text.",
        )
    windows.check_length(min(target.config.max_model_len, base.config.max_model_len))


def _score_target(
    target: Decoder, base_chunks: list[Tensor], index: int, window: Window, worst: WorstTokens
) -> TokenStatistics:
    """The whole target on one window; its worst tokens are kept in `worst`."""
    chunks = zip(
        base_chunks,
        ModelLogits(target, name="", scheme="").chunks(window),
        _next_tokens(target, window),
        strict=True,
    )
    scored: list[TokenStatistics] = []
    position = len(window.token_ids) - window.num_scored
    for base_logits, target_logits, next_tokens in chunks:
        statistics = compare_logits(base_logits, target_logits, next_tokens)
        if not statistics.is_finite:
            raise _not_finite(statistics, index)
        worst.add(index, position, base_logits, target_logits, statistics)
        scored.append(statistics)
        position += len(next_tokens)
    return concatenate(scored)


def _score_part(
    part: Part, transplant: Transplant, base_chunks: list[Tensor], window: Window
) -> _Sums:
    """The base with one part of the target on one window."""
    changed = transplant.chunks(part)
    if changed is None:
        return _Sums(window.num_scored, 0.0, window.num_scored)
    next_tokens = _next_tokens(transplant.base, window)
    kld, num_same = 0.0, 0
    for base_logits, logits, tokens in zip(base_chunks, changed, next_tokens, strict=True):
        statistics = compare_logits(base_logits, logits, tokens)
        kld += float(statistics.kld.sum())
        num_same += int(statistics.same_top1.sum())
    if not np.isfinite(kld):
        raise ModelError(
            f"the base with {part.label} of the model gives NaN or infinite logits",
            "Run both in float32; if that does not help, the block is damaged: make it again.",
        )
    return _Sums(window.num_scored, kld, num_same)


def _next_tokens(model: Decoder, window: Window) -> tuple[Tensor, ...]:
    """The scored tokens, in chunks as the logits come."""
    return torch.split(window.next_tokens, rows_per_chunk(model.config.vocab_size))


def _not_finite(statistics: TokenStatistics, index: int) -> ModelError:
    of_base = not bool(statistics.base_log_prob.isfinite().all())
    return ModelError(
        f"the {'base' if of_base else 'model'} gives NaN or infinite logits in window {index + 1}",
        "Run it in float32 or bfloat16; if that does not help, its weights are damaged: "
        + ("fetch it again." if of_base else "make it again."),
    )


def _atlas_part(part: Part, windows: Sequence[_Sums], options: QualityOptions) -> AtlasPart:
    """A part over all windows."""
    kld: FloatArray = np.array([window.kld for window in windows])
    num_tokens: FloatArray = np.array([float(window.num_tokens) for window in windows])
    return AtlasPart(
        label=part.label,
        kind=part.kind,
        layer=part.layer,
        kld_mean=float(kld.sum() / num_tokens.sum()),
        kld_mean_ci=ratio_interval(
            kld,
            num_tokens,
            confidence=options.confidence,
            num_resamples=options.num_resamples,
            seed=options.seed,
        ),
        top1_agreement=sum(window.num_same_top1 for window in windows) / float(num_tokens.sum()),
    )
