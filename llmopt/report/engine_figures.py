"""What the built-in engine's counters say of a row: cache, waste, drafts.

Knows nothing about layout. The law: a share is of sums over all runs, and what a backend does not
count is not known, rather than 0.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from llmopt.results.schema import CellResult, RunRecord

MAX_ALIKE = 0.01  # of shares, and of tokens per step


@dataclass(frozen=True, slots=True)
class EngineFigures:
    """None: not counted, or there was nothing to count."""

    hit_rate: float | None  # prompt tokens found in the prefix cache / prompt tokens
    waste_share: float | None  # empty slots of held cache blocks / their slots
    max_tokens_waste_share: float | None  # the same if each request had a row of its full length
    model_len_waste_share: float | None  # or one of the longest length that is served
    acceptance_rate: float | None  # drafted tokens that were taken / all of them
    acceptance_by_position: tuple[float, ...]  # the same of the first, the second ... of a draft
    mean_draft_tokens: float | None
    tokens_per_step: float | None  # of a request that decodes; 1 without speculation
    peak_kv_bytes: float | None  # of the cache blocks that requests held


def engine_figures(result: CellResult) -> EngineFigures | None:
    """The figures of a cell; None if it did not run."""
    if not result.runs:
        return None
    counters = _Counters(result.runs)
    peaks = [run.step_stats["peak_kv_bytes"] for run in result.runs if _has_peak(run)]
    return EngineFigures(
        hit_rate=counters.share("num_prefix_hit_tokens", "num_prompt_tokens"),
        waste_share=counters.share("empty_slot_steps", "held_slot_steps"),
        max_tokens_waste_share=_rest(counters.share("token_slot_steps", "max_tokens_slot_steps")),
        model_len_waste_share=_rest(counters.share("token_slot_steps", "model_len_slot_steps")),
        acceptance_rate=counters.share("num_accepted_tokens", "num_draft_tokens"),
        acceptance_by_position=counters.by_position(),
        mean_draft_tokens=counters.share("num_draft_tokens", "num_drafts"),
        tokens_per_step=counters.share("num_decode_tokens", "num_decodes"),
        peak_kv_bytes=max(peaks, default=None),
    )


def differ(figures: Sequence[EngineFigures], name: str) -> bool:
    """Whether engines differ in this figure by more than runs of one engine may."""
    values: set[float | None] = {getattr(each, name) for each in figures}
    known = [value for value in values if value is not None]
    if not known:
        return False
    return len(known) < len(values) or max(known) - min(known) > MAX_ALIKE


@dataclass(frozen=True, slots=True)
class _Counters:
    runs: Sequence[RunRecord]

    def total(self, name: str) -> float | None:
        if any(name not in run.step_stats for run in self.runs):
            return None
        return sum(run.step_stats[name] for run in self.runs)

    def share(self, part: str, whole: str) -> float | None:
        numerator, denominator = self.total(part), self.total(whole)
        return None if numerator is None or not denominator else numerator / denominator

    def by_position(self) -> tuple[float, ...]:
        """As far as drafts of every run went."""
        positions = range(1, sum(name.startswith("num_drafted_at_") for name in self._names()) + 1)
        shares = [self.share(f"num_accepted_at_{i}", f"num_drafted_at_{i}") for i in positions]
        return tuple(share for share in shares if share is not None)

    def _names(self) -> set[str]:
        return {name for run in self.runs for name in run.step_stats}


def _has_peak(run: RunRecord) -> bool:
    return "peak_kv_bytes" in run.step_stats


def _rest(share: float | None) -> float | None:
    return None if share is None else 1 - share
