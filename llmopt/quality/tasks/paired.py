"""Right and wrong answers of two models to the same items: what changed, and whether it is noise.

Knows nothing about models or tasks. The law it keeps: only items that changed count as evidence,
and a difference is called one only when the exact test and the interval both say so.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from llmopt.results.schema import Interval

NUM_RESAMPLES = 10_000

Judgement = Literal["same", "noise", "lost", "gained"]


@dataclass(frozen=True, slots=True)
class PairedAccuracy:
    """The accuracy of a model beside its base's, on the same items.

    metric: "acc", "acc_norm" or "exact"
    difference: target - base, as a share
    num_lost, num_gained: flips: right only in the base, right only in the target
    p_value: exact McNemar test, two-sided
    judgement: "same": not one item changed; "noise": it can be chance
    text: the judgement in one sentence, with its evidence
    """

    metric: str
    num_items: int
    base: float
    target: float
    difference: float
    difference_ci: Interval
    num_lost: int
    num_gained: int
    p_value: float
    judgement: Judgement
    text: str

    @property
    def flip_share(self) -> float:
        """Share of items whose correctness changed, both ways (Dutta et al., arXiv 2407.09141)."""
        return (self.num_lost + self.num_gained) / self.num_items


def compare_answers(
    metric: str,
    base: Sequence[bool],
    target: Sequence[bool],
    *,
    confidence: float = 0.95,
    num_resamples: int = NUM_RESAMPLES,
    seed: int = 0,
) -> PairedAccuracy:
    """Compare which items two models got right, item by item; at least one item."""
    assert len(base) == len(target) > 0, f"{len(base)} answers against {len(target)}"
    num_items = len(base)
    pairs = list(zip(base, target, strict=True))
    num_lost = sum(was and not is_now for was, is_now in pairs)
    num_gained = sum(is_now and not was for was, is_now in pairs)
    difference = (num_gained - num_lost) / num_items
    interval = difference_interval(
        num_lost,
        num_gained,
        num_items,
        confidence=confidence,
        num_resamples=num_resamples,
        seed=seed,
    )
    p_value = mcnemar_p(num_lost, num_gained)
    judgement = _judge(num_lost, num_gained, p_value, interval, confidence)
    evidence = (
        f"{100 * difference:+.1f} points [{100 * interval[0]:+.1f}, {100 * interval[1]:+.1f}],"
        f" {num_lost} lost and {num_gained} gained of {num_items}, p = {p_value:.2g}"
    )
    return PairedAccuracy(
        metric=metric,
        num_items=num_items,
        base=sum(base) / num_items,
        target=sum(target) / num_items,
        difference=difference,
        difference_ci=interval,
        num_lost=num_lost,
        num_gained=num_gained,
        p_value=p_value,
        judgement=judgement,
        text=_sentence(judgement, difference, evidence),
    )


def mcnemar_p(num_lost: int, num_gained: int) -> float:
    """Exact two-sided McNemar test: are flips one way as likely as the other? 1 without flips.

    Twice the smaller tail of a binomial of the flips with probability 1/2 (McNemar 1947; Fagerland
    et al. 2013, doi 10.1186/1471-2288-13-91).
    """
    num_flips = num_lost + num_gained
    tail = sum(math.comb(num_flips, k) for k in range(min(num_lost, num_gained) + 1))
    return min(1.0, 2 * tail / (1 << num_flips))  # whole numbers: exact however many


def difference_interval(
    num_lost: int,
    num_gained: int,
    num_items: int,
    *,
    confidence: float = 0.95,
    num_resamples: int = NUM_RESAMPLES,
    seed: int = 0,
) -> Interval:
    """Bootstrap interval over items of the difference in accuracy.

    An item's difference is -1, 0 or 1, so drawing items again is drawing the counts of the three
    from a multinomial. Half an item is added to each cell of the table of answers beforehand
    (Agresti and Min 2005, doi 10.1002/sim.1781): few flips, or none, are no proof of no difference,
    and the plain bootstrap's interval would then be too narrow or empty. In simulations nominal
    95 % intervals hold the truth in 93 % of cases with 4 flips on average, in 95 to 96 % with more.
    """
    total = num_items + 2
    lost, gained = (num_lost + 0.5) / total, (num_gained + 0.5) / total
    draws = np.random.default_rng(seed).multinomial(
        total, [lost, gained, 1 - lost - gained], size=num_resamples
    )
    tail = (1 - confidence) / 2
    low, high = np.quantile((draws[:, 1] - draws[:, 0]) / total, [tail, 1 - tail])
    return float(low), float(high)


def _judge(
    num_lost: int, num_gained: int, p_value: float, interval: Interval, confidence: float
) -> Judgement:
    if num_lost == num_gained == 0:
        return "same"
    if p_value >= 1 - confidence or interval[0] <= 0 <= interval[1]:
        return "noise"
    return "lost" if num_lost > num_gained else "gained"


def _sentence(judgement: Judgement, difference: float, evidence: str) -> str:
    match judgement:
        case "same":
            return "not one item changed"
        case "noise":
            return f"the difference is within noise ({evidence})"
        case "lost" | "gained":
            return f"{judgement} {100 * abs(difference):.1f} points ({evidence})"
