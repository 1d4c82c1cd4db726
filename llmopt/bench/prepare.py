"""From a recipe's targets to checkpoints on disk: found, downloaded or quantized.

Knows nothing about measuring. The law: a quantized checkpoint is used again only if the same code
would make the same one from the same source: its directory's name is a hash of all that.
"""

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import llmopt.bench.elsewhere
import llmopt.formats
import llmopt.quantize
import llmopt.quantize.importance
from llmopt.bench.checkpoints import PlannedCheckpoint, find_checkpoint, make_checkpoints
from llmopt.bench.dummy import dummy_hash, dummy_note, dummy_path, dummy_scheme
from llmopt.bench.facts import content_hash
from llmopt.bench.loaded import LoadedModels
from llmopt.bench.observer import Observer, open_stage
from llmopt.bench.provenance import quantization_record
from llmopt.bench.quantization import Quantization, check_source_for, read_quantization
from llmopt.environment.catalogue import find_environment
from llmopt.formats.checkpoint import read_json
from llmopt.models.decoder import Decoder
from llmopt.models.package_model import PROVENANCE_NAME
from llmopt.models.resolve import resolve_model
from llmopt.models.tokenizer import load_tokenizer
from llmopt.quantize.calibration import CalibrationData, pack_corpus
from llmopt.quantize.calibration_source import open_corpus
from llmopt.quantize.engines.catalogue import find_engine
from llmopt.quantize.identity import calibration_hash
from llmopt.recipe.schema import Calibration, Recipe, Target
from llmopt.results.schema import QuantizationRecord


@dataclass(frozen=True, slots=True)
class PreparedTarget:
    """A target whose checkpoint is there, and what a reader must know about its source."""

    target: Target
    path: Path
    content_hash: str
    note: str | None
    quantization: QuantizationRecord | None

    def load(self, models: LoadedModels) -> Decoder:
        """The model, from memory if it is there. Raises what loading raises."""
        target = self.target
        if target.dummy_config is None:
            return models.get(self.path, target.dtype, target.activations)
        return models.get_dummy(self.path, target.dtype, dummy_scheme(target), target.activations)


def prepare_targets(
    recipe: Recipe,
    targets: Sequence[Target],
    work_dir: Path,
    observer: Observer,
    *,
    device: str = "cpu",
) -> dict[Target, PreparedTarget | Exception]:
    """Resolve the targets' models and quantize them into `work_dir` where the recipe says so.

    What goes wrong with a target stands in its place: an `LLMOptError` of resolving, calibrating
    or quantizing. All schemes that are not there yet are made in one pass over their model.
    """
    preparation = _Preparation(recipe, work_dir, observer, device)
    outcomes: dict[Target, PreparedTarget | Exception] = {}
    plans: dict[Target, PlannedCheckpoint] = {}
    for target in targets:
        with open_stage(observer, f"prepare {target.name}"):
            try:
                plan = preparation.plan(target)
                if plan is None:
                    outcomes[target] = preparation.finish(target, None)
                else:
                    plans[target] = plan
            except Exception as error:
                outcomes[target] = error
    distinct = {plan.directory: plan for plan in plans.values()}
    errors = make_checkpoints(list(distinct.values()), observer, device=device)
    for target, plan in plans.items():
        outcomes[target] = errors.get(plan.directory) or preparation.finish(target, plan)
    return outcomes


@dataclass(frozen=True, slots=True)
class _Source:
    """A full-precision model, or whatever a target names."""

    path: Path
    content_hash: str


@dataclass(slots=True)
class _Preparation:
    recipe: Recipe
    work_dir: Path
    observer: Observer
    device: str
    sources: dict[str, _Source] = field(default_factory=dict)
    calibrations: dict[Path, CalibrationData] = field(default_factory=dict)

    def plan(self, target: Target) -> PlannedCheckpoint | None:
        """What is to be made for a target, if anything; refused at once if it is impossible."""
        if target.dummy_config is not None:
            return None
        source = self._source(target.model)
        if target.quantize is None:
            return None
        quantization = read_quantization(target.quantize)
        calibration = None
        if quantization.job.scheme.needs_calibration:
            calibration = self._calibration(source.path, self.recipe.calibration)
        if quantization.is_own:
            check_source_for(quantization.job, source.path)
        model = Path(target.model).name
        digest = self._digest(source, quantization, calibration)
        directory = self.work_dir / f"{model}-{quantization.label}-{digest[:12]}"
        return PlannedCheckpoint(source.path, directory, quantization, calibration)

    def finish(self, target: Target, plan: PlannedCheckpoint | None) -> PreparedTarget:
        """The target with its checkpoint, which is there."""
        if target.dummy_config is not None:
            found = dummy_path(target.dummy_config)
            return PreparedTarget(
                target, found, dummy_hash(target, found), dummy_note(target), None
            )
        source = self._source(target.model)
        path = source.path if plan is None else find_checkpoint(plan.directory)
        assert path is not None, "what was made without an error is whole"
        return PreparedTarget(
            target,
            path,
            source.content_hash if plan is None else content_hash(path),
            _note(target, source.path),
            quantization_record(path),
        )

    def _source(self, model: str) -> _Source:
        if model not in self.sources:
            path = resolve_model(
                model,
                lambda what, share: self.observer.stage_advanced(round(100 * share), 100, what),
            )
            self.sources[model] = _Source(path, content_hash(path))
        return self.sources[model]

    def _calibration(self, source: Path, calibration: Calibration) -> CalibrationData:
        if source not in self.calibrations:
            self.calibrations[source] = pack_corpus(
                load_tokenizer(source),
                open_corpus(calibration.text),
                num_samples=calibration.num_samples,
                sample_tokens=calibration.sample_tokens,
                seed=self.recipe.seed,
            )
        return self.calibrations[source]

    def _digest(
        self, source: _Source, quantization: Quantization, calibration: CalibrationData | None
    ) -> str:
        """A hash of all that decides what the checkpoint will hold, our code included."""
        digest = hashlib.sha256(source.content_hash.encode())
        digest.update(json.dumps([asdict(quantization), self.device.partition(":")[0]]).encode())
        if calibration is not None:
            digest.update(calibration_hash(calibration).encode())
        if not quantization.is_own:
            environment = find_environment(find_engine(quantization.engine).environment)
            digest.update(environment.fingerprint.encode())
        for module in _code(quantization):
            digest.update(module.read_bytes())
        return digest.hexdigest()


def _code(quantization: Quantization) -> Iterator[Path]:
    """The modules that make a checkpoint, or that tell an engine of others how."""
    if not quantization.is_own:
        worker = find_engine(quantization.engine).worker
        yield Path(llmopt.bench.elsewhere.__file__)
        yield Path(llmopt.quantize.importance.__file__)
        yield Path(llmopt.quantize.__path__[0], "engines", "workers", worker)
        return
    for package in (llmopt.formats, llmopt.quantize):
        yield from sorted(Path(package.__path__[0]).glob("*.py"))


def _note(target: Target, source: Path) -> str | None:
    provenance = source / PROVENANCE_NAME
    if not provenance.is_file():
        return None
    return f"The weights of {target.model} are {read_json(provenance)['note']}."
