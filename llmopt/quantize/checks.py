"""Everything that can be known of a run before the first block: what is impossible is refused here.

Reads headers only. Knows nothing of how blocks are quantized.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from llmopt.errors import QuantizationError, UsageError
from llmopt.formats.checkpoint import CheckpointReader
from llmopt.formats.overrides import LM_HEAD
from llmopt.formats.weights import WeightFormat
from llmopt.models.config import ModelConfig
from llmopt.quantize.calibration import CalibrationData
from llmopt.quantize.disk import OutputSize, gguf_size, output_size
from llmopt.quantize.gguf_job import GgufPlan, plan_gguf
from llmopt.quantize.layout import (
    check_specs,
    matrix_shapes,
    model_families,
    router_modules,
    tensor_shapes,
)
from llmopt.quantize.options import Job
from llmopt.quantize.override import ModuleSpecs, resolve_specs
from llmopt.quantize.storage import weight_format


@dataclass(frozen=True, slots=True)
class CheckedJob:
    """A job that can be done. specs: of the modules that it quantizes"""

    job: Job
    specs: ModuleSpecs
    storage: WeightFormat | GgufPlan
    size: OutputSize


@dataclass(frozen=True, slots=True)
class SourceFacts:
    """What is known of a source without its weights.

    hf_config: config.json; shapes: of all tensors; tensor_bytes: their sizes
    """

    hf_config: Mapping[str, Any]
    shapes: Mapping[str, tuple[int, ...]]
    tensor_bytes: Mapping[str, int]

    @classmethod
    def of_checkpoint(cls, reader: CheckpointReader) -> "SourceFacts":
        """From the headers of a checkpoint. Raises `CheckpointError`."""
        shapes = {name: reader.shape(name) for name in reader.names()}
        sizes = {n: math.prod(s) * reader.dtype(n).itemsize for n, s in shapes.items()}
        return cls(reader.config, shapes, sizes)

    @classmethod
    def of_config(cls, hf_config: Mapping[str, Any]) -> "SourceFacts":
        """From config.json alone. Raises `ModelError`."""
        config = ModelConfig.from_hf(hf_config)
        shapes = tensor_shapes(config)
        itemsize = 4 if config.dtype == "float32" else 2
        sizes = {name: math.prod(shape) * itemsize for name, shape in shapes.items()}
        return cls(hf_config, shapes, sizes)


def check_jobs(facts: SourceFacts, jobs: Sequence[Job]) -> tuple[CheckedJob, ...]:
    """Raise `QuantizationError`, `ModelError` or `CheckpointError` unless every job can be done to
    this source.
    """
    config = ModelConfig.from_hf(facts.hf_config)
    checked = []
    for job in jobs:
        _check_blocks(job, config)
        families = model_families(config)
        if job.lm_head:
            _check_head(job, config)
            families.append((LM_HEAD,))
        modules = [name for family in families for name in family]
        shapes = matrix_shapes(facts.shapes, modules)
        specs = resolve_specs(families, job.scheme.spec, job.overrides)
        if job.scheme.mix is not None:
            skipped = [name for name in modules if name not in specs]
            plan = plan_gguf(facts.hf_config, facts.shapes, job.scheme.mix, job.gguf_pre, skipped)
            checked.append(CheckedJob(job, specs, plan, gguf_size(plan, modules)))
            continue
        stored = weight_format(job, specs, [*modules, *router_modules(config)], config.dtype)
        check_specs(shapes, specs)
        size = output_size(job, specs, shapes, facts.tensor_bytes)
        checked.append(CheckedJob(job, specs, stored, size))
    return tuple(checked)


def _check_blocks(job: Job, config: ModelConfig) -> None:
    """Raise `QuantizationError` where a method cannot work on the model's blocks."""
    name, method = config.architecture, job.scheme.method
    if config.transposed:
        raise QuantizationError(
            f"{name} stores its matrices transposed, which quantized formats do not",
            "This model runs in full precision only.",
        )
    if config.experts is not None and job.scheme.needs_calibration:
        raise QuantizationError(
            f"{method} looks at the inputs of each layer, and {name} is a mixture of experts, each"
            " with inputs of its own",
            "Use a method without calibration: rtn, nf4, int8, w8a16 or fp8.",
        )
    scales = job.scheme.uses_awq or method == "w8a8"
    if scales and (config.layer_norm or not config.gated):
        raise QuantizationError(
            f"{method} folds scales into RMSNorms and gates, which {name} does not have",
            "Use gptq, or a method without calibration.",
        )


def _check_head(job: Job, config: ModelConfig) -> None:
    if config.tie_word_embeddings:
        raise QuantizationError(
            "the output head of this model is its embedding, which only GGUF quantizes",
            "Leave the head out, or choose a gguf mix.",
        )
    if job.format not in ("gptq", "compressed-tensors") or job.scheme.method == "w8a8":
        raise QuantizationError(
            f"{job.label} stored as {job.format} has no way to quantize the output head",
            "Use the format gptq or compressed-tensors; gguf mixes quantize the head anyway.",
        )


def check_window(config: ModelConfig, calibration: CalibrationData) -> None:
    """Raise `UsageError` if the calibration windows are longer than what the model reads."""
    if calibration.sample_tokens > config.max_model_len:
        raise UsageError(
            f"the model reads at most {config.max_model_len} tokens, and the calibration samples "
            f"have {calibration.sample_tokens}",
            f"Ask for samples of at most {config.max_model_len} tokens.",
        )


def check_calibration(jobs: Iterable[Job], calibration: CalibrationData | None) -> None:
    """Raise `UsageError` if a job needs calibration data and there is none."""
    for job in jobs:
        if job.scheme.needs_calibration and calibration is None:
            raise UsageError(
                f"{job.scheme.method} needs calibration tokens",
                "Give calibration data, or use rtn.",
            )
