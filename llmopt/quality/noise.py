"""The noise floor: what rounding alone costs, and a verdict on a target in units of it.

The base is run again in the 16-bit dtype that it is served in, and compared with the float32 base
on the same windows. Every later difference is read against that one. Knows nothing about files or
how the target was made. The law it keeps: target and noise are compared on the same windows, and
the windows are drawn again together.

What the numbers mean: the noise is one realisation of rounding. A target that itself computes in
16 bits carries noise of that size on top of its own loss, so 1 times the noise is what a faithful
one has; a target that computes in float32 can lie below it. A single token can carry most of the
mean of few windows (SmolLM2 after two tokens of context: 2.9 nats from bfloat16 alone), which the
intervals show. A base that is itself computed in 16 bits has no floor: the second run would be the
first again.
"""

import math
from dataclasses import dataclass

from llmopt.layers.native_linear import WeightActivations
from llmopt.quality.bootstrap import FloatArray, ratio_interval
from llmopt.quality.options import QualityOptions
from llmopt.quality.perplexity import from_nats
from llmopt.quality.scores import OnWindow, Scores, score_windows
from llmopt.quality.source import LogitSource
from llmopt.quality.windows import EvaluationWindows
from llmopt.results.schema import Interval, NoiseFloor, Verdict

NOISE_DTYPES = ("bfloat16", "float16")
# Of the noise run: before quantized weights its activations keep the bits of their dtype.
UNROUNDED: WeightActivations = "bf16"


@dataclass(frozen=True, slots=True, eq=False)
class NoiseScores:
    """Sums of the noise run over each window, float64 [W], as `Scores` defines them."""

    scheme: str  # of the base in that dtype, "bf16"
    kld_sums: FloatArray
    log_ratio_sums: FloatArray
    num_scored: FloatArray

    @classmethod
    def from_scores(cls, scores: Scores, scheme: str) -> "NoiseScores":
        """The noise floor from scores of the base in its 16-bit dtype against itself in float32."""
        return cls(scheme, scores.kld_sums, scores.log_ratio_sums, scores.num_scored)

    def first(self, num_windows: int) -> "NoiseScores":
        """Of the first windows alone, for a target whose scoring stopped early."""
        assert num_windows <= len(self.kld_sums), "the noise was measured on fewer windows"
        return NoiseScores(
            self.scheme,
            self.kld_sums[:num_windows],
            self.log_ratio_sums[:num_windows],
            self.num_scored[:num_windows],
        )


def noise_dtype(served: str, compute: str) -> str | None:
    """The dtype in which the base's noise run computes; None where it would be the base again.

    served: the dtype that "auto" gives the base here; compute: that of the base's own run. Both as
    torch names them. A float32 checkpoint is served in bfloat16 wherever memory or speed matter.
    """
    if compute in NOISE_DTYPES:
        return None
    return served if served in NOISE_DTYPES else "bfloat16"


def measure_noise(
    noisy_base: LogitSource,
    base: LogitSource,
    windows: EvaluationWindows,
    *,
    on_window: OnWindow | None = None,
) -> NoiseScores:
    """Score the base in its 16-bit dtype against the base in float32. Raises as `score_windows`."""
    scores = score_windows(noisy_base, base, windows, on_window=on_window)
    return NoiseScores.from_scores(scores, noisy_base.scheme)


def noise_floor(noise: NoiseScores, options: QualityOptions) -> NoiseFloor:
    """What rounding alone costs, with intervals over windows."""
    low, high = _interval(noise.log_ratio_sums, noise.num_scored, options)
    num_tokens = noise.num_scored.sum()
    return NoiseFloor(
        scheme=noise.scheme,
        kld_mean=float(noise.kld_sums.sum() / num_tokens),
        kld_mean_ci=_interval(noise.kld_sums, noise.num_scored, options),
        ppl_ratio=from_nats(float(noise.log_ratio_sums.sum() / num_tokens)),
        ppl_ratio_ci=(from_nats(low), from_nats(high)),
    )


def verdict(
    scores: Scores, ppl_ratio_ci: Interval, noise: NoiseScores, options: QualityOptions
) -> Verdict:
    """Judge the target's loss against the noise on the same windows.

    Evidence is the ratio of the two KL divergences, whose interval comes from windows drawn for
    both at once. "indistinguishable": the interval reaches down to 1, so that the loss is not shown
    to exceed the noise. "worse": it does exceed it, and the perplexity ratio's interval lies wholly
    above 1 and above the noise's own. "above noise": it exceeds it, without a loss in perplexity
    that these windows show.

    ppl_ratio_ci: of the target against the base.
    """
    floor = noise_floor(noise, options)
    times, times_ci = _times_noise(scores.kld_sums, noise.kld_sums, options)
    low, high = times_ci
    span = f"{_digits(times)} times the noise of {floor.scheme} [{_digits(low)}, {_digits(high)}]"
    worst_noise = max(floor.ppl_ratio_ci[1], 1.0)
    ppl = f"perplexity ratio [{ppl_ratio_ci[0]:.4f}, {ppl_ratio_ci[1]:.4f}]"
    if low <= 1:
        text = f"Indistinguishable from the base: the KL divergence is {span}."
        return Verdict("indistinguishable", times, times_ci, text)
    if ppl_ratio_ci[0] > worst_noise:
        text = (
            f"Worse than the base: the KL divergence is {span}, and the {ppl} lies above the "
            f"noise's, which ends at {floor.ppl_ratio_ci[1]:.4f}."
        )
        return Verdict("worse", times, times_ci, text)
    text = (
        f"Above the noise: the KL divergence is {span}, but the {ppl} is not beyond what noise "
        f"does, which ends at {floor.ppl_ratio_ci[1]:.4f}."
    )
    return Verdict("above noise", times, times_ci, text)


def _times_noise(
    target: FloatArray, noise: FloatArray, options: QualityOptions
) -> tuple[float, Interval]:
    """Ratio of two sums over windows, with its interval; without any noise 0 or infinite."""
    assert len(target) == len(noise), "target and noise are of the same windows"
    if not target.any():
        return 0.0, (0.0, 0.0)
    if not noise.any():
        return math.inf, (math.inf, math.inf)
    return float(target.sum() / noise.sum()), _interval(target, noise, options)


def _digits(times: float) -> str:
    """Three digits, and all of those before the point."""
    return f"{times:,.0f}" if times >= 100 else f"{times:.3g}"


def _interval(
    numerators: FloatArray, denominators: FloatArray, options: QualityOptions
) -> Interval:
    return ratio_interval(
        numerators,
        denominators,
        confidence=options.confidence,
        num_resamples=options.num_resamples,
        seed=options.seed,
    )
