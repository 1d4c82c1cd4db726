"""Tasks of lm-evaluation-harness, answered by llmopt's runtime, with per-item results.

Knows the harness' interface (0.4.13 and later) and nothing about log-likelihoods. The law it keeps:
right and wrong are the harness' own judgement, item by item; a task that it does not judge item by
item is refused.
"""

from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from llmopt.errors import MissingDependencyError, UsageError
from llmopt.quality.tasks.report import OnItem, TaskReport, build_report
from llmopt.quality.tasks.score import TaskItem, TaskModel, TaskScores

_JUDGEMENTS = ("acc", "exact_match")  # metrics of single items that are 0 or 1, the first one found


def compare_harness(
    target: TaskModel,
    base: TaskModel,
    tasks: Sequence[str],
    *,
    limit: int | None = None,
    num_fewshot: int | None = None,
    include_path: Path | None = None,
    confidence: float = 0.95,
    on_item: OnItem | None = None,
) -> TaskReport:
    """Let both models answer the same items of tasks; arguments and errors as `run_harness`."""
    manager = _task_manager(include_path)
    base_scores, target_scores = (
        _answer(task_model, manager, tasks, limit, num_fewshot, on_item)
        for task_model in (base, target)
    )
    return build_report(
        target.name,
        base.name,
        target_scores,
        base_scores,
        source="lm-evaluation-harness",
        confidence=confidence,
    )


def run_harness(
    task_model: TaskModel,
    tasks: Sequence[str],
    *,
    limit: int | None = None,
    num_fewshot: int | None = None,
    include_path: Path | None = None,
    on_item: OnItem | None = None,
) -> list[TaskScores]:
    """Answer tasks of the harness, by name or the path of a YAML file; groups become their tasks.

    limit: only the first items of each task
    num_fewshot: worked examples in front of each item; None: as the task has it
    include_path: a folder of further task definitions
    on_item: hears the requests done and in all, for each kind of request of each model anew

    Raises MissingDependencyError without lm_eval; UsageError for a task that is unknown, whose data
    cannot be had, or that has no right and wrong per item.
    """
    return _answer(task_model, _task_manager(include_path), tasks, limit, num_fewshot, on_item)


def _task_manager(include_path: Path | None) -> Any:
    """The index of all task definitions, which takes the harness seconds to make."""
    if find_spec("lm_eval") is None:
        raise MissingDependencyError(
            "these tasks need lm-evaluation-harness, which is not installed",
            'Run: pip install "llmopt[tasks]", or give ready requests in a file.',
        )
    from lm_eval.tasks import TaskManager

    return TaskManager(include_path=None if include_path is None else str(include_path))


def _answer(
    task_model: TaskModel,
    manager: Any,
    tasks: Sequence[str],
    limit: int | None,
    num_fewshot: int | None,
    on_item: OnItem | None,
) -> list[TaskScores]:
    """Run one model. Tasks keep their requests and answers, so each model gets new ones."""
    from lm_eval import simple_evaluate

    from llmopt.quality.tasks.harness_lm import LlmoptLM

    results = simple_evaluate(
        model=LlmoptLM(task_model, on_item),
        tasks=_load(manager, tasks),
        limit=limit,
        num_fewshot=num_fewshot,
        bootstrap_iters=0,
        task_manager=manager,
    )
    samples: Mapping[str, Sequence[Mapping[str, Any]]] = results["samples"]
    return [_scores(task, logged) for task, logged in samples.items()]


def _load(manager: Any, tasks: Sequence[str]) -> list[Any]:
    """The task objects, so that what is wrong with a task is said before anything is computed."""
    loaded = []
    for name in tasks:
        try:
            found = manager.load([name])["tasks"]
        except Exception as error:  # whatever the harness, its data sets or the network raise
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise UsageError(
                f"the task {name!r} cannot be loaded ({reason})",
                "`lm-eval ls tasks` lists the names. Data comes from the hub and is kept once"
                " fetched; without a hub, replay logged samples as ready requests.",
            ) from error
        loaded += found.values()
    return loaded


def _scores(task: str, logged: Sequence[Mapping[str, Any]]) -> TaskScores:
    """One task's answers, judged behind the first of its filters."""
    first = logged[0]
    judgement = next((name for name in _JUDGEMENTS if name in first), None)
    if judgement is None:
        raise UsageError(
            f"the task {task} has no right and wrong per item, but {', '.join(first['metrics'])}",
            "Choose tasks with the metric acc or exact_match; perplexity has its own protocols.",
        )
    kept = [sample for sample in logged if sample["filter"] == first["filter"]]
    return TaskScores(task, tuple(_item(sample, judgement) for sample in kept))


def _item(sample: Mapping[str, Any], judgement: str) -> TaskItem:
    """One logged sample. Its answers are (log-likelihood, is greedy) pairs or generated texts."""
    answers = sample["filtered_resps"]
    scores = tuple(float(answer[0]) for answer in answers if isinstance(answer, tuple | list))
    if "acc_mutual_info" in sample:  # the second half are the choices without their context
        scores = scores[: len(scores) // 2]
    norm = sample.get("acc_norm")
    return TaskItem(
        id=str(sample["doc_id"]),
        scores=scores,
        prediction=scores.index(max(scores)) if len(scores) > 1 else None,
        correct=bool(sample[judgement]),
        correct_norm=None if norm is None else bool(norm),
    )
