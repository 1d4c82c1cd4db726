"""What a model answered to every item of a task, and how often it was right.

Knows nothing about files or about a second model. The law it keeps: an item's result depends on the
item and the model alone, so that the items of two models can be paired.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from llmopt.engine.model_runner import DecoderModel
from llmopt.models.tokenizer import Tokenizer
from llmopt.quality.tasks.encode import encode_pair
from llmopt.quality.tasks.loglikelihood import MAX_BATCH_TOKENS, LogLikelihood, OnPair, score_pairs
from llmopt.quality.tasks.requests import TaskRequest


@dataclass(frozen=True, slots=True)
class TaskModel:
    """A model that answers tasks, and what a reader calls it."""

    model: DecoderModel
    tokenizer: Tokenizer
    name: str


@dataclass(frozen=True, slots=True)
class TaskItem:
    """One answer.

    scores: log-likelihood of each continuation in nats; empty for an answer that was generated
    prediction: the likeliest choice; None where there is nothing to choose from
    correct: the choice is right, or greedy decoding produced the target
    correct_norm: the same with the log-likelihoods divided by the choices' bytes; None: no choices
    """

    id: str
    scores: tuple[float, ...]
    prediction: int | None
    correct: bool
    correct_norm: bool | None


@dataclass(frozen=True, slots=True)
class TaskScores:
    """One model's answers to one task, in the order of its items."""

    task: str
    items: tuple[TaskItem, ...]

    @property
    def accuracy(self) -> float:
        """Share of items that are right."""
        return sum(item.correct for item in self.items) / len(self.items)

    @property
    def accuracy_norm(self) -> float | None:
        """Share of items that are right by length-normalized scores; None without choices."""
        flags = [item.correct_norm for item in self.items]
        return None if None in flags else sum(map(bool, flags)) / len(flags)


def score_requests(
    task_model: TaskModel,
    requests: Sequence[TaskRequest],
    *,
    max_batch_tokens: int = MAX_BATCH_TOKENS,
    on_pair: OnPair | None = None,
) -> tuple[TaskItem, ...]:
    """Answer every request, in order. Raises what `encode_pair` and `score_pairs` raise."""
    pairs = [
        encode_pair(task_model.tokenizer, request.context, continuation)
        for request in requests
        for continuation in request.continuations
    ]
    results = iter(
        score_pairs(task_model.model, pairs, max_batch_tokens=max_batch_tokens, on_pair=on_pair)
    )
    return tuple(
        score_item(request, [next(results) for _ in request.continuations]) for request in requests
    )


def score_item(request: TaskRequest, results: Sequence[LogLikelihood]) -> TaskItem:
    """Judge one item by the log-likelihoods of its continuations.

    The normalized score divides by the bytes of the choice in UTF-8, without one space in front
    (lm-evaluation-harness' `acc_bytes`; its `acc_norm` counts characters, the same for ASCII). Of
    equal scores the first counts.
    """
    scores = tuple(result.log_prob for result in results)
    if request.gold is None:
        return TaskItem(request.id, scores, None, results[0].is_greedy, None)
    num_bytes = [max(1, len(text.removeprefix(" ").encode())) for text in request.continuations]
    normalized = [score / size for score, size in zip(scores, num_bytes, strict=True)]
    prediction = scores.index(max(scores))
    return TaskItem(
        id=request.id,
        scores=scores,
        prediction=prediction,
        correct=prediction == request.gold,
        correct_norm=normalized.index(max(normalized)) == request.gold,
    )
