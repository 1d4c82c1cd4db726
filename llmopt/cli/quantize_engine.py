"""`llmopt quantize --engine`: a quantizer of others, and the same proof of what it made.

Knows the engines and our formats; knows nothing of how an engine works. The law: what an engine
cannot do is refused before a model is read, and what it made is published only when it was read,
is finite and was inspected.
"""

import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from rich.markup import escape

from llmopt.bench.elsewhere import quantize_elsewhere
from llmopt.bench.facts import tensor_sizes
from llmopt.environment.catalogue import find_environment
from llmopt.environment.installation import require_python
from llmopt.errors import BackendError
from llmopt.formats.checkpoint import CheckpointReader, read_json
from llmopt.formats.codebook import CodebookWeight
from llmopt.formats.dynamic import DynamicWeight
from llmopt.formats.gguf_blocks import GgufWeight
from llmopt.formats.quantized import QuantizedWeight, StoredWeight
from llmopt.formats.staging import check_writable, output_errors
from llmopt.formats.weights import quantized_weights
from llmopt.hardware.memory import PeakMemory
from llmopt.models.config import ModelConfig
from llmopt.models.loader import open_checkpoint
from llmopt.models.resolve import resolve_model
from llmopt.quantize.calibration import CalibrationData
from llmopt.quantize.engines.catalogue import find_engine
from llmopt.quantize.engines.engine import Engine
from llmopt.quantize.engines.request import EngineRequest
from llmopt.quantize.identity import source_hash
from llmopt.quantize.inspection import Inspector, WrittenCheckpoint
from llmopt.quantize.layout import model_families
from llmopt.quantize.options import Job, ModuleRecord, QuantizeObserver, QuantizeSummary
from llmopt.quantize.output import RECORD_FILE, RUN_FILE
from llmopt.quantize.rounding import check_finite
from llmopt.quantize.scheme import Scheme

_LINE = 60  # characters of what an engine prints


@dataclass(frozen=True, slots=True)
class _Made:
    """What is in a checkpoint: its quantized layers, and their bits on disk per weight."""

    modules: tuple[ModuleRecord, ...]
    shapes: Mapping[str, tuple[int, int]]
    bits_per_weight: float
    file_bytes: int


def engine_job(name: str, scheme: Scheme, gguf_pre: str | None = None) -> Job:
    """The job of a scheme in the format that the engine writes.

    Raises `UsageError` for an unknown engine, `QuantizationError` for a method or setting that it
    lacks, and `BackendError` where its environment is not installed.
    """
    engine = find_engine(name)
    capability = engine.capability(scheme.method)
    nothing = CalibrationData(torch.empty(0, 0, dtype=torch.int64), "read later", "", 0)
    engine.check(_request(engine, scheme, nothing))
    require_python(find_environment(engine.environment))
    return Job(scheme, capability.format, gguf_pre=gguf_pre)


def quantize_with(
    engine: str,
    source: Path,
    outputs: Mapping[Path, Job],
    calibration: CalibrationData | None,
    device: str,
    observer: QuantizeObserver,
    inspect: Inspector,
) -> tuple[QuantizeSummary, ...]:
    """Make each checkpoint with an engine of others, read it and have it inspected.

    Raises what `quantize_elsewhere` raises, `BackendError` for files that our runtime cannot read,
    and what `inspect` raises; then nothing is left but the engine's log.
    """
    reader = CheckpointReader(source)
    digest = source_hash(reader)
    summaries = []
    for out, job in outputs.items():
        with _unpublished(out) as made:
            observer.stage_started(f"{engine}: {job.label}")
            quantize_elsewhere(
                engine,
                source,
                made,
                job.scheme,
                calibration,
                on_gpu=device != "cpu",
                on_line=lambda line: observer.stage_started(escape(f"{engine}: {line[:_LINE]}")),
                gguf_pre=job.gguf_pre,
            )
            observer.stage_started(f"read what {engine} wrote")
            found = _examine(engine, made, reader)
            summary = _summary(out, job, made, found)
            made_with = _made_with(made)
            inspect(
                WrittenCheckpoint(
                    made, source, reader.num_bytes, digest, job, summary, found.shapes, made_with
                )
            )
        summaries.append(summary)
    return tuple(summaries)


def _request(engine: Engine, scheme: Scheme, calibration: CalibrationData) -> EngineRequest:
    """What would be asked, before there is a model."""
    return EngineRequest(
        Path(),
        Path(),
        engine.capability(scheme.method).method,
        scheme.spec,
        calibration,
        scheme.double_quant,
        scheme.mix,
    )


@contextmanager
def _unpublished(out: Path) -> Iterator[Path]:
    """A path in a hidden directory beside `out`; what is there at the end gets that name."""
    check_writable(out, expected_bytes=0)
    with output_errors(out):
        parent = Path(tempfile.mkdtemp(prefix=f".{out.name}.", suffix=".partial", dir=out.parent))
    try:
        yield parent / out.name
        with output_errors(out):
            (parent / out.name).rename(out)
    finally:
        shutil.rmtree(parent, ignore_errors=True)


def _examine(engine: str, made: Path, source: CheckpointReader) -> _Made:
    """Read every quantized layer; `QuantizationError` for numbers that are not finite."""
    checkpoint = open_checkpoint(resolve_model(str(made)))
    weights = quantized_weights(checkpoint)
    if weights is None:
        raise BackendError(f"{engine} left every layer as it was", "Report it with the command.")
    families = model_families(ModelConfig.from_hf(source.config))
    names = [name for family in families for name in family if name in weights]
    shapes, records = {}, []
    for name in names:
        weight = weights.weight(name)
        check_finite(f"{engine}'s {name}", weight.dequantize())
        shapes[name] = weight.shape
        records.append(_record(name, weight))
    sizes = tensor_sizes(checkpoint, weights)
    num_weights = sum(sizes[name][0] for name in names)
    num_bytes = sum(sizes[name][1] for name in names)
    bits = 8 * num_bytes / max(num_weights, 1)
    return _Made(tuple(records), shapes, bits, checkpoint.num_bytes)


def _record(name: str, weight: StoredWeight) -> ModuleRecord:
    stored = weight.weight if isinstance(weight, DynamicWeight) else weight
    match stored:
        case QuantizedWeight():
            return ModuleRecord(name, stored.spec.bits, stored.spec.group_size, weight.label)
        case CodebookWeight():
            return ModuleRecord(name, 4, stored.block_size, weight.label)
        case GgufWeight():
            return ModuleRecord(name, stored.type.bits_per_weight, None, weight.label)
        case _:
            return ModuleRecord(name, 8, None, weight.label)


def _summary(out: Path, job: Job, made: Path, found: _Made) -> QuantizeSummary:
    run = read_json(made / RUN_FILE)
    return QuantizeSummary(
        out=out,
        scheme=job.label,
        seconds=run["seconds"],
        shared_seconds=0.0,
        modules=found.modules,
        bits_per_weight=found.bits_per_weight,
        file_bytes=found.file_bytes,
        peak_memory=PeakMemory(run["peak_memory"]["host_bytes"], None),
        resumed_blocks=0,
    )


def _made_with(made: Path) -> str:
    """Such as "gptqmodel 7.6.0, torch 2.13.0", from the record."""
    versions: Mapping[str, str] = read_json(made / RECORD_FILE)["engine"]["versions"]
    return ", ".join(f"{package} {version}" for package, version in versions.items())
