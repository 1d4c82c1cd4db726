"""From a recipe's target to a checkpoint on disk: found, downloaded or quantized.

Knows nothing about measuring. The law: a quantized checkpoint is used again only if the same code
would make the same one from the same source: its directory's name is a hash of all that.
"""

import hashlib
import json
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path

import llmopt.formats
import llmopt.quantize
from llmopt.bench.facts import content_hash
from llmopt.bench.observer import Observer
from llmopt.errors import CheckpointError
from llmopt.formats.checkpoint import CheckpointReader, read_json
from llmopt.formats.quantized import QuantSpec
from llmopt.models.default_model import PROVENANCE_NAME
from llmopt.models.resolve import resolve_model
from llmopt.models.tokenizer import load_tokenizer
from llmopt.quantize.calibration import CalibrationData, load_calibration
from llmopt.quantize.options import QuantizeOptions
from llmopt.quantize.pipeline import quantize_checkpoint
from llmopt.recipe.schema import BUNDLED_TEXT, Calibration, QuantizeSpec, Recipe, Target


@dataclass(frozen=True, slots=True)
class PreparedTarget:
    """A target whose checkpoint is there, and what a reader must know about its source."""

    target: Target
    path: Path
    content_hash: str
    note: str | None


def prepare_target(
    recipe: Recipe, target: Target, work_dir: Path, observer: Observer
) -> PreparedTarget:
    """Resolve the target's model and quantize it into `work_dir` if the recipe says so.

    Raises what resolving, calibrating and quantizing raise: an `LLMOptError` each.
    """
    source = resolve_model(
        target.model,
        lambda what, share: observer.stage_advanced(round(100 * share), 100, what),
    )
    path = source
    if target.quantize is not None:
        options = _options(source, target.quantize, recipe)
        path = work_dir / _directory_name(target, source, options)
        if not _is_whole(path):
            shutil.rmtree(path, ignore_errors=True)
            _quantize(source, path, options, observer)
    return PreparedTarget(target, path, content_hash(path), _note(target, source))


def _options(source: Path, spec: QuantizeSpec, recipe: Recipe) -> QuantizeOptions:
    calibration = None
    if spec.method != "rtn":
        calibration = _calibration(source, recipe.calibration, recipe.seed)
    return QuantizeOptions(
        method=spec.method,
        spec=QuantSpec(spec.bits, spec.group_size, spec.symmetric),
        calibration=calibration,
        format=spec.format,
    )


def _calibration(source: Path, calibration: Calibration, seed: int) -> CalibrationData:
    text_file = None if calibration.text == BUNDLED_TEXT else Path(calibration.text)
    return load_calibration(
        load_tokenizer(source),
        text_file,
        num_samples=calibration.num_samples,
        sample_tokens=calibration.sample_tokens,
        seed=seed,
    )


def _quantize(source: Path, path: Path, options: QuantizeOptions, observer: Observer) -> None:
    def advance(block: int, num_blocks: int, module: str, loss: float | None) -> None:
        quality = "" if loss is None else f", loss {loss:.3g}"
        observer.stage_advanced(block, num_blocks, f"{module}{quality}")

    quantize_checkpoint(source, path, options, on_progress=advance)


def _directory_name(target: Target, source: Path, options: QuantizeOptions) -> str:
    """Readable in front, unique behind."""
    digest = hashlib.sha256(content_hash(source).encode())
    settings = [asdict(options.spec), asdict(options.gptq), asdict(options.awq)]
    digest.update(json.dumps([options.method, options.format, *settings]).encode())
    if options.calibration is not None:
        digest.update(options.calibration.tokens.numpy().tobytes())
    for package in (llmopt.formats, llmopt.quantize):
        for module in sorted(Path(package.__path__[0]).glob("*.py")):
            digest.update(module.read_bytes())
    model = Path(target.model).name
    return f"{model}-{options.spec.label(options.method)}-{digest.hexdigest()[:12]}"


def _note(target: Target, source: Path) -> str | None:
    provenance = source / PROVENANCE_NAME
    if not provenance.is_file():
        return None
    return f"The weights of {target.model} are {read_json(provenance)['note']}."


def _is_whole(path: Path) -> bool:
    try:
        return path.is_dir() and bool(CheckpointReader(path).names())
    except CheckpointError:
        return False
