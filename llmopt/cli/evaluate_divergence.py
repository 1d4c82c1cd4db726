"""The first half of `llmopt eval`: a model against its base, or alone, on a text.

Knows which function measures what; computes nothing. The law: the base always runs in llmopt's own
runtime, whatever the model runs in.
"""

from collections.abc import Callable
from dataclasses import replace

from llmopt.cli.evaluate_models import EvaluationModels
from llmopt.cli.evaluate_options import OWN_RUNTIME, Evaluation, quality_options
from llmopt.cli.progress import StageProgress
from llmopt.models.tokenizer import load_tokenizer
from llmopt.quality.base_cache import DiskLogits
from llmopt.quality.compare import (
    BaseOptions,
    check_tokenizer,
    compare,
    open_base,
    open_model,
    open_noise,
)
from llmopt.quality.external.measure import measure_source
from llmopt.quality.external.sources import open_source
from llmopt.quality.external.truncated import TruncatedSource
from llmopt.quality.noise import NoiseScores, measure_noise
from llmopt.quality.prediction import PredictionRecord, measure_prediction
from llmopt.quality.source import LogitSource
from llmopt.quality.text import load_windows
from llmopt.quality.windows import EvaluationWindows
from llmopt.results.schema import QualityRecord


def measure_alone(
    asked: Evaluation, models: EvaluationModels, progress: StageProgress
) -> PredictionRecord | None:
    """Perplexity of the model, where there is no base."""
    if asked.base is not None:
        return None
    assert models.path is not None, "a server is compared with a base"
    options = quality_options(asked)
    windows = load_windows(load_tokenizer(models.path), options)
    with progress.stage("score it"):
        advance = _windows(progress)
        if models.kind == OWN_RUNTIME:
            source = open_model(
                models.path,
                asked.model,
                dtype=asked.dtype,
                device=asked.device,
                activations=asked.activations,
            )
            return measure_prediction(source, windows, options, advance)
        with open_source(models.kind, models.path, dtype=asked.dtype, device=asked.device) as other:
            assert not isinstance(other, TruncatedSource), "only servers truncate"
            models.served_scheme = other.scheme
            return measure_prediction(other, windows, options, advance)


def measure_divergence(
    asked: Evaluation, models: EvaluationModels, progress: StageProgress
) -> QualityRecord | None:
    """The divergence from the base, its noise floor and the verdict, if asked for."""
    if asked.base is None or not asked.divergence:
        return None
    if models.kind != OWN_RUNTIME:
        return _compare_elsewhere(asked, models, progress)
    assert models.path is not None, "only servers have no path"
    assert models.base_path is not None, "the base was found"
    with progress.stage("compare them"):
        return compare(
            models.path,
            models.base_path,
            quality_options(asked),
            _base_options(asked),
            dtype=asked.dtype,
            device=asked.device,
            activations=asked.activations,
            on_window=_windows(progress),
            on_noise_window=_windows(progress, " of the noise floor"),
            on_remark=models.remarks.append,
        )


def _compare_elsewhere(
    asked: Evaluation, models: EvaluationModels, progress: StageProgress
) -> QualityRecord:
    """The same of a model in a runtime of others."""
    assert models.base_path is not None, "the base was found"
    options = quality_options(asked)
    windows = load_windows(load_tokenizer(models.base_path), options)
    if models.path is not None:
        check_tokenizer(models.path, models.base_path, windows, options)
    base = open_base(models.base_path, _base_options(asked), device=asked.device)
    noise = _noise_meter(asked, models, base, progress)
    with (
        open_source(
            models.kind,
            models.url or models.path or "",
            dtype=asked.dtype,
            device=asked.device,
            served_name=asked.model,
        ) as target,
        progress.stage(f"compare it in {models.kind}"),
    ):
        models.served_scheme = target.scheme
        record = measure_source(
            target, models.kind, base, windows, options, noise=noise, on_window=_windows(progress)
        )
    if not isinstance(base, DiskLogits):
        return record
    if base.remark is not None:
        models.remarks.append(base.remark)
    return replace(record, base_cache_error=base.error)


def _noise_meter(
    asked: Evaluation, models: EvaluationModels, base: LogitSource, progress: StageProgress
) -> Callable[[EvaluationWindows], NoiseScores] | None:
    """What measures the noise floor on given windows; None: the base has none, or not asked for."""
    assert models.base_path is not None, "the base was found"
    if not asked.noise:
        return None
    source = open_noise(models.base_path, _base_options(asked), device=asked.device)
    if source is None:
        return None
    advance = _windows(progress, " of the noise floor")
    return lambda windows: measure_noise(source, base, windows, on_window=advance)


def _base_options(asked: Evaluation) -> BaseOptions:
    return BaseOptions(
        name=asked.base or "", dtype=asked.base_dtype, cache=asked.cache, noise=asked.noise
    )


def _windows(progress: StageProgress, of: str = "") -> Callable[[int, int], None]:
    return lambda done, total: progress.stage_advanced(done, total, f"windows{of}")
