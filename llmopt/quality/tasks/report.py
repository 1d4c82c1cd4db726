"""The tasks of a model beside its base's: per-item answers of both, and what they add up to.

Knows nothing about where the items come from. The law it keeps: both models answered the same items
in the same order, and all of their answers are kept.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from llmopt.errors import UsageError
from llmopt.quality.bootstrap import ratio_interval
from llmopt.quality.tasks.paired import PairedAccuracy, compare_answers
from llmopt.quality.tasks.requests import RequestsByTask
from llmopt.quality.tasks.score import TaskItem, TaskModel, TaskScores, score_requests
from llmopt.results.schema import Interval

OnItem = Callable[[int, int], None]  # (continuations done, continuations in all), both models


@dataclass(frozen=True, slots=True)
class PairedPerplexity:
    """Perplexity per target, exp(-mean log-likelihood over items), as LAMBADA is reported;
    infinite where it is beyond all numbers.

    ratio_ci: of target / base, a bootstrap over items; None for a single item
    """

    base: float
    target: float
    ratio: float
    ratio_ci: Interval | None


@dataclass(frozen=True, slots=True)
class ItemPair:
    """One item's answers."""

    base: TaskItem
    target: TaskItem


@dataclass(frozen=True, slots=True)
class TaskComparison:
    """One task.

    metrics: "acc" and, for choices, "acc_norm", or "exact" for targets and generated answers
    perplexity: of tasks with targets
    """

    task: str
    metrics: tuple[PairedAccuracy, ...]
    perplexity: PairedPerplexity | None
    items: tuple[ItemPair, ...]


@dataclass(frozen=True, slots=True)
class TaskReport:
    """All tasks of one model against its base.

    overall: all items of all tasks together by plain accuracy, where there are several tasks: with
        many of them, one in twenty is outside its noise by chance
    """

    base_name: str
    target_name: str
    source: str  # "requests" or "lm-evaluation-harness"
    confidence: float
    tasks: tuple[TaskComparison, ...]
    overall: PairedAccuracy | None


def compare_tasks(
    target: TaskModel,
    base: TaskModel,
    items_by_task: RequestsByTask,
    on_item: OnItem | None = None,
    *,
    confidence: float = 0.95,
) -> TaskReport:
    """Let both models answer ready requests. Raises UsageError for items that do not fit a model.

    The models may have different tokenizers: what is compared is answers, not tokens.
    """
    num_each = sum(
        len(request.continuations) for items in items_by_task.values() for request in items
    )
    progress = _Progress(2 * num_each, on_item)
    base_scores = _score(base, items_by_task, progress)
    target_scores = _score(target, items_by_task, progress)
    return build_report(
        target.name,
        base.name,
        target_scores,
        base_scores,
        source="requests",
        confidence=confidence,
    )


def build_report(
    target_name: str,
    base_name: str,
    target_scores: Sequence[TaskScores],
    base_scores: Sequence[TaskScores],
    *,
    source: str,
    confidence: float = 0.95,
) -> TaskReport:
    """Pair the answers of two models. Raises UsageError if there are none."""
    if not base_scores:
        raise UsageError("there are no items to answer", "Give at least one task with an item.")
    tasks = tuple(
        _compare_task(base, target, confidence)
        for base, target in zip(base_scores, target_scores, strict=True)
    )
    overall = None
    if len(tasks) > 1:
        pairs = [pair for task in tasks for pair in task.items]
        overall = _compare("acc", pairs, confidence)
    return TaskReport(base_name, target_name, source, confidence, tasks, overall)


def _compare_task(base: TaskScores, target: TaskScores, confidence: float) -> TaskComparison:
    ids = [item.id for item in base.items]
    assert ids == [item.id for item in target.items], "both models answer the same items"
    pairs = tuple(map(ItemPair, base.items, target.items))
    has_choices = all(item.prediction is not None for item in base.items)
    metrics = [_compare("acc" if has_choices else "exact", pairs, confidence)]
    if all(item.correct_norm is not None for item in base.items):
        base_norm = [bool(pair.base.correct_norm) for pair in pairs]
        target_norm = [bool(pair.target.correct_norm) for pair in pairs]
        metrics.append(compare_answers("acc_norm", base_norm, target_norm, confidence=confidence))
    has_targets = all(len(item.scores) == 1 for item in base.items)
    perplexity = _compare_perplexity(pairs, confidence) if has_targets else None
    return TaskComparison(base.task, tuple(metrics), perplexity, pairs)


def _compare(metric: str, pairs: Sequence[ItemPair], confidence: float) -> PairedAccuracy:
    return compare_answers(
        metric,
        [pair.base.correct for pair in pairs],
        [pair.target.correct for pair in pairs],
        confidence=confidence,
    )


def _compare_perplexity(pairs: Sequence[ItemPair], confidence: float) -> PairedPerplexity:
    base = np.array([pair.base.scores[0] for pair in pairs])
    target = np.array([pair.target.scores[0] for pair in pairs])
    interval = None
    if len(pairs) > 1:
        low, high = ratio_interval(base - target, np.ones(len(pairs)), confidence=confidence)
        interval = (_exp(low), _exp(high))
    return PairedPerplexity(
        base=_exp(-base.mean()),
        target=_exp(-target.mean()),
        ratio=_exp((base - target).mean()),
        ratio_ci=interval,
    )


def _exp(nats: float) -> float:
    try:
        return math.exp(nats)
    except OverflowError:
        return math.inf


class _Progress:
    """Continuations done over several calls that each count their own."""

    def __init__(self, total: int, on_item: OnItem | None) -> None:
        self.total = total
        self.done_before = 0
        self.on_item = on_item

    def advance(self, done: int, total: int) -> None:
        if self.on_item is not None:
            self.on_item(self.done_before + done, self.total)
        if done == total:
            self.done_before += total


def _score(
    task_model: TaskModel, items_by_task: RequestsByTask, progress: _Progress
) -> list[TaskScores]:
    return [
        TaskScores(task, score_requests(task_model, requests, on_pair=progress.advance))
        for task, requests in items_by_task.items()
    ]
