"""What `llmopt eval` does: find the models, measure what was asked for, show it.

Knows the order of the work; computes nothing. The law: the JSON has the same keys whatever was
asked for, and null or nothing for what was not.
"""

import json
import sys
from dataclasses import dataclass
from pathlib import Path

import typer
from rich.console import RenderableType

from llmopt.cli.atlas_view import atlas_parts
from llmopt.cli.evaluate_divergence import measure_alone, measure_divergence
from llmopt.cli.evaluate_further import measure_greedy_outputs, measure_layers, measure_tasks
from llmopt.cli.evaluate_models import EvaluationModels
from llmopt.cli.evaluate_options import OWN_RUNTIME, Evaluation, check
from llmopt.cli.evaluate_view import prediction_parts, print_parts, quality_parts
from llmopt.cli.greedy_view import greedy_parts
from llmopt.cli.output import open_output
from llmopt.cli.progress import StageProgress
from llmopt.cli.tasks_view import tasks_parts
from llmopt.layers.native_linear import WeightActivations
from llmopt.quality.atlas_report import AtlasReport
from llmopt.quality.greedy_report import GreedyReport
from llmopt.quality.prediction import PredictionRecord
from llmopt.quality.tasks.report import TaskReport
from llmopt.report.atlas_page import render_atlas_page
from llmopt.results.codec import to_json
from llmopt.results.schema import QualityRecord


@dataclass(frozen=True, slots=True)
class Outcome:
    """All that was measured: the JSON document. None and (): not asked for.

    activations: what the model's are rounded to before quantized weights; None: in another runtime
    quality: against the base; prediction: of the model alone, where there is no base
    """

    model: str
    scheme: str | None
    base: str | None
    activations: WeightActivations | None
    quality: QualityRecord | None
    prediction: PredictionRecord | None
    tasks: tuple[TaskReport, ...]
    greedy: GreedyReport | None
    atlas: AtlasReport | None


def run(asked: Evaluation) -> None:
    """Measure and show. Raises any `LLMOptError`."""
    check(asked)
    with StageProgress() as progress:
        models = EvaluationModels(asked, progress)
        quality = measure_divergence(asked, models, progress)
        prediction = measure_alone(asked, models, progress)
        outcome = Outcome(
            model=asked.model,
            scheme=models.scheme,
            base=asked.base,
            activations=asked.activations if models.kind == OWN_RUNTIME else None,
            quality=quality,
            prediction=prediction,
            tasks=measure_tasks(asked, models, progress),
            greedy=measure_greedy_outputs(asked, models, progress),
            atlas=measure_layers(asked, models, progress),
        )
    for remark in models.remarks:
        typer.echo(remark, err=True)
    text = json.dumps(to_json(outcome), indent=2, ensure_ascii=False) + "\n"
    if asked.json:
        sys.stdout.write(text)
    else:
        print_parts(_parts(outcome))
    _write(text, asked.out)
    if outcome.atlas is not None and asked.html is not None:
        _write(render_atlas_page(outcome.atlas), asked.html)


def _write(text: str, path: Path | None) -> None:
    if path is None:
        return
    with open_output(path) as stream:
        stream.write(text)
    typer.echo(f"wrote {path}", err=True)


def _parts(outcome: Outcome) -> list[RenderableType]:
    """All that is to be printed, with an empty line between two measurements."""
    name = outcome.model if outcome.scheme is None else f"{outcome.model} ({outcome.scheme})"
    measured: list[list[RenderableType]] = []
    if outcome.quality is not None:
        measured.append(quality_parts(outcome.quality, name))
    if outcome.prediction is not None:
        measured.append(prediction_parts(outcome.prediction))
    measured += [tasks_parts(report) for report in outcome.tasks]
    if outcome.greedy is not None:
        measured.append(greedy_parts(outcome.greedy))
    if outcome.atlas is not None:
        measured.append(atlas_parts(outcome.atlas))
    return [part for parts in measured for part in ("", *parts)][1:]
