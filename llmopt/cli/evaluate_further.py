"""What `llmopt eval` measures besides the divergence: tasks, greedy outputs, the damage atlas.

Knows which function measures what; computes nothing. The law: every part is measured on the same
two models, and only if it was asked for.
"""

from collections.abc import Callable
from dataclasses import replace

from llmopt.cli.evaluate_models import EvaluationModels
from llmopt.cli.evaluate_options import Evaluation, quality_options
from llmopt.cli.progress import StageProgress
from llmopt.quality.atlas import ATLAS_WINDOWS, measure_atlas
from llmopt.quality.atlas_report import AtlasReport
from llmopt.quality.greedy import measure_greedy
from llmopt.quality.greedy_prompts import GreedyOptions
from llmopt.quality.greedy_report import GreedyReport
from llmopt.quality.tasks.harness import compare_harness
from llmopt.quality.tasks.report import TaskReport, compare_tasks
from llmopt.quality.tasks.requests import read_requests
from llmopt.quality.tasks.score import TaskModel
from llmopt.quality.text import load_windows


def measure_tasks(
    asked: Evaluation, models: EvaluationModels, progress: StageProgress
) -> tuple[TaskReport, ...]:
    """Ready requests and tasks of lm-evaluation-harness, a report for each kind."""
    if not asked.has_tasks:
        return ()
    requests = {task: items[: asked.limit] for task, items in read_requests(asked.requests).items()}
    target = TaskModel(models.target(), models.tokenizer, asked.model)
    base = TaskModel(models.base(), models.base_tokenizer, asked.base or "")
    reports = []
    if requests:
        with progress.stage("answer requests"):
            reports.append(compare_tasks(target, base, requests, _advance(progress, "answers")))
    if asked.task_names:
        with progress.stage("answer tasks"):
            on_item = _advance(progress, "answers")
            names = asked.task_names
            reports.append(compare_harness(target, base, names, limit=asked.limit, on_item=on_item))
    return tuple(reports)


def measure_greedy_outputs(
    asked: Evaluation, models: EvaluationModels, progress: StageProgress
) -> GreedyReport | None:
    """Where greedy outputs first depart from the base's."""
    if not asked.greedy:
        return None
    options = GreedyOptions(prompts=asked.prompts, text=asked.text)
    target, base, noise = models.target(), models.base(), models.noisy_base()
    with progress.stage("compare greedy outputs"):
        return measure_greedy(
            target,
            base,
            models.base_tokenizer,
            options,
            _advance(progress, "tokens"),
            noise=noise,
            target_name=asked.model,
            base_name=asked.base or "",
        )


def measure_layers(
    asked: Evaluation, models: EvaluationModels, progress: StageProgress
) -> AtlasReport | None:
    """The damage atlas, of both models in the base's dtype unless another one is asked for."""
    if not asked.atlas:
        return None
    options = replace(quality_options(asked), until_ci=None)
    if asked.num_windows is None:
        options = replace(options, num_windows=ATLAS_WINDOWS)
    tokenizer = models.base_tokenizer
    windows = load_windows(tokenizer, options)
    target = models.target(asked.base_dtype if asked.dtype == "auto" else asked.dtype)
    base = models.base()
    with progress.stage("look for the damage"):
        return measure_atlas(
            target,
            base,
            windows,
            options,
            tokenizer,
            _advance(progress, "layers"),
            detail=asked.atlas_detail,
            target_name=asked.model,
            base_name=asked.base or "",
            base_scheme=models.base_scheme,
        )


def _advance(progress: StageProgress, units: str) -> Callable[[int, int], None]:
    return lambda done, total: progress.stage_advanced(done, total, units)
