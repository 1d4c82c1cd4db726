"""From choices on the base's greedy paths to shares of prompts and tokens, with intervals.

Knows nothing about models. The law it keeps: prompts are independent, tokens of one prompt are not,
so every interval is over prompts.
"""

from collections.abc import Sequence
from statistics import NormalDist

import numpy as np
import torch

from llmopt.models.tokenizer import Tokenizer
from llmopt.quality.bootstrap import FloatArray, ratio_interval
from llmopt.quality.greedy_paths import Choices, GreedyPath
from llmopt.quality.greedy_prompts import GreedyOptions
from llmopt.quality.greedy_report import FirstDifference, GreedyPrompt, GreedyRun
from llmopt.quality.worst_tokens import CONTEXT_TOKENS, token_text
from llmopt.results.schema import Interval

NEAR_TIE_QUANTILE = 0.99


def near_tie_nats(paths: Sequence[GreedyPath], reader: int) -> float:
    """How far rounding moves a gap at nearly all positions, in nats; `reader` is the noise run."""
    moved = torch.cat([path.choices[reader].moved_nats for path in paths])
    return float(np.quantile(moved.numpy(), NEAR_TIE_QUANTILE))


def summarize_run(
    name: str,
    paths: Sequence[GreedyPath],
    reader: int,
    threshold: float | None,
    tokenizer: Tokenizer,
    options: GreedyOptions,
) -> GreedyRun:
    """One reader on all paths. threshold: `near_tie_nats`, or None where there was no noise run."""
    confidence = options.confidence
    choices = [path.choices[reader] for path in paths]
    both = list(zip(paths, choices, strict=True))
    prompts = tuple(_prompt(path, one, threshold, tokenizer) for path, one in both)
    found = [prompt.difference for prompt in prompts if prompt.difference is not None]
    flipped = [one.token_ids != torch.tensor(path.output) for path, one in both]
    flips: FloatArray = np.array([float(row.sum()) for row in flipped])
    lengths: FloatArray = np.array([float(len(row)) for row in flipped])
    damaged = damaged_ci = near_ties = beyond_noise = None
    if threshold is not None:
        num_damaged = sum(not difference.near_tie for difference in found)
        damaged = num_damaged / len(prompts)
        damaged_ci = wilson_interval(num_damaged, len(prompts), confidence)
        near_ties = 1 - num_damaged / len(found) if found else None
        beyond = [
            row & (one.gap_nats > threshold) for row, one in zip(flipped, choices, strict=True)
        ]
        beyond_noise = sum(int(row.sum()) for row in beyond) / float(lengths.sum())
    return GreedyRun(
        name=name,
        prompts=prompts,
        diverged=len(found) / len(prompts),
        diverged_ci=wilson_interval(len(found), len(prompts), confidence),
        damaged=damaged,
        damaged_ci=damaged_ci,
        near_ties=near_ties,
        median_position=_median_position(prompts),
        flips=float(flips.sum() / lengths.sum()),
        flips_ci=ratio_interval(
            flips,
            lengths,
            confidence=confidence,
            num_resamples=options.num_resamples,
            seed=options.seed,
        ),
        flips_beyond_noise=beyond_noise,
    )


def _prompt(
    path: GreedyPath, choices: Choices, threshold: float | None, tokenizer: Tokenizer
) -> GreedyPrompt:
    different = (choices.token_ids != torch.tensor(path.output)).nonzero()
    difference = None
    if len(different) > 0:
        position = int(different[0])
        context = [*path.prompt, *path.output[:position]][-CONTEXT_TOKENS:]
        gap_nats = max(0.0, float(choices.gap_nats[position]))
        difference = FirstDifference(
            position=position,
            base_token=token_text(tokenizer, context, path.output[position]),
            token=token_text(tokenizer, context, int(choices.token_ids[position])),
            gap=float(path.gap[position]),
            gap_nats=float(path.gap_nats[position]),
            chosen_gap_nats=gap_nats,
            near_tie=None if threshold is None else gap_nats <= threshold,
        )
    return GreedyPrompt(
        prompt=tokenizer.decode(path.prompt),
        base_output=tokenizer.decode(path.output),
        num_tokens=len(path.output),
        difference=difference,
    )


def _median_position(prompts: Sequence[GreedyPrompt]) -> int | None:
    """The lower median of the first differences, where an output that never differs is the last.

    Outputs that end early and are the same to their end can never differ, so that nothing but the
    common limit `max_new_tokens` censors, and the Kaplan-Meier median is this one.
    """
    positions = sorted(p.difference.position for p in prompts if p.difference is not None)
    middle = (len(prompts) - 1) // 2
    return positions[middle] if middle < len(positions) else None


def wilson_interval(successes: int, trials: int, confidence: float) -> Interval:
    """Wilson's score interval of a share (Wilson 1927; Brown, Cai and DasGupta 2001)."""
    z = NormalDist().inv_cdf((1 + confidence) / 2)
    share, scale = successes / trials, 1 + z**2 / trials
    center = (share + z**2 / (2 * trials)) / scale
    half = z / scale * (share * (1 - share) / trials + z**2 / (4 * trials**2)) ** 0.5
    return max(0.0, center - half), min(1.0, center + half)
