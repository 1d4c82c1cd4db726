"""The quantized checkpoints that a recipe's targets need, made: all schemes of a model in one pass.

Knows the quantizers; knows nothing about recipes. The law: a scheme that cannot be made takes no
other one down, and a pass that was interrupted goes on where it stopped.
"""

import hashlib
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from llmopt.bench.elsewhere import quantize_elsewhere
from llmopt.bench.observer import Observer, open_stage
from llmopt.bench.quantization import Quantization
from llmopt.errors import LLMOptError
from llmopt.models.loader import open_checkpoint
from llmopt.models.resolve import resolve_model
from llmopt.quantize.calibration import CalibrationData
from llmopt.quantize.journal import journal_path
from llmopt.quantize.options import ModuleFinished, RunOptions, SilentObserver
from llmopt.quantize.pipeline import quantize_jobs
from llmopt.quantize.statistics_cache import statistics_directory

_MAX_LINE = 60  # characters of what an engine prints


@dataclass(frozen=True, slots=True)
class PlannedCheckpoint:
    """A checkpoint that is there or can be made. calibration: None if its method needs none"""

    source: Path
    directory: Path
    quantization: Quantization
    calibration: CalibrationData | None


def find_checkpoint(directory: Path) -> Path | None:
    """Return the model directory, or the GGUF file in it, if it is whole."""
    if not directory.is_dir():
        return None
    try:
        path = resolve_model(str(directory))
        return path if open_checkpoint(path).names() else None
    except LLMOptError:
        return None


def make_checkpoints(
    planned: Sequence[PlannedCheckpoint], observer: Observer, *, device: str
) -> dict[Path, Exception]:
    """Make those that are not there; returns by directory what went wrong."""
    errors: dict[Path, Exception] = {}
    for batch in _batches([each for each in planned if each.quantization.is_own]):
        errors |= _make_together(batch, observer, device)
    for each in planned:
        if not each.quantization.is_own and find_checkpoint(each.directory) is None:
            shutil.rmtree(each.directory, ignore_errors=True)
            try:
                _make_elsewhere(each, observer, device)
            except Exception as error:
                errors[each.directory] = error
    return errors


def _batches(planned: Sequence[PlannedCheckpoint]) -> list[list[PlannedCheckpoint]]:
    """Those of one source together; a batch names each scheme once, as its journal does."""
    batches: list[list[PlannedCheckpoint]] = []
    for each in planned:
        fitting = (
            batch
            for batch in batches
            if batch[0].source == each.source
            and all(other.quantization.label != each.quantization.label for other in batch)
        )
        batch = next(fitting, None)
        if batch is None:
            batches.append([each])
        else:
            batch.append(each)
    return batches


def _make_together(
    batch: Sequence[PlannedCheckpoint], observer: Observer, device: str
) -> dict[Path, Exception]:
    """Make what is missing of a batch in one pass, or one by one if that fails."""
    missing = [each for each in batch if find_checkpoint(each.directory) is None]
    if not missing:
        return {}
    if not _journal(batch).exists():
        batch = missing
    for each in missing:
        shutil.rmtree(each.directory, ignore_errors=True)
    try:
        _quantize(batch, observer, device)
    except Exception as error:
        if len(batch) == 1:
            return {batch[0].directory: error}
        shutil.rmtree(_journal(batch), ignore_errors=True)
        errors: dict[Path, Exception] = {}
        for each in batch:
            errors |= _make_together([each], observer, device)
        return errors
    return {}


def _quantize(batch: Sequence[PlannedCheckpoint], observer: Observer, device: str) -> None:
    calibrations = (each.calibration for each in batch if each.calibration is not None)
    run = RunOptions(next(calibrations, None), device, statistics_directory(), restart=True)
    outputs = {each.directory: each.quantization.job for each in batch}
    with open_stage(observer, f"quantize {_what(batch)}"):
        quantize_jobs(batch[0].source, outputs, _journal(batch), run, _Progress(observer))


def _make_elsewhere(planned: PlannedCheckpoint, observer: Observer, device: str) -> None:
    quantization = planned.quantization
    with open_stage(observer, f"quantize {quantization.label}"):
        quantize_elsewhere(
            quantization.engine,
            planned.source,
            planned.directory,
            quantization.job.scheme,
            planned.calibration,
            on_gpu=device != "cpu",
            on_line=lambda line: observer.stage_advanced(0, 1, line[:_MAX_LINE]),
        )


def _journal(batch: Sequence[PlannedCheckpoint]) -> Path:
    """Where a batch keeps its finished blocks: of another batch elsewhere."""
    if len(batch) == 1:
        return journal_path(batch[0].directory)
    digest = hashlib.sha256("\n".join(each.directory.name for each in batch).encode())
    return journal_path(batch[0].directory.parent / f"schemes-{digest.hexdigest()[:12]}")


def _what(batch: Sequence[PlannedCheckpoint]) -> str:
    return batch[0].quantization.label if len(batch) == 1 else f"{len(batch)} schemes"


class _Progress(SilentObserver):
    """Draws a quantization as the open stage of a sweep."""

    def __init__(self, observer: Observer) -> None:
        self._observer = observer

    def module_finished(self, event: ModuleFinished) -> None:
        """Say which module was done, and how well."""
        record = event.record
        quality = "" if record.loss is None else f", loss {record.loss:.3g}"
        detail = f"{event.scheme}: {record.name}{quality}"
        self._observer.stage_advanced(event.block, event.num_blocks, detail)
