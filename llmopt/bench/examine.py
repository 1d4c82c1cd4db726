"""What is true of a target whatever the load: its facts, its cost, its quality.

Knows nothing about runs. The law: quality is measured once per target, against one base, with the
activations that the target is served with.
"""

from pathlib import Path

import torch

from llmopt.bench.cost import cost_model
from llmopt.bench.dummy import dummy_facts
from llmopt.bench.engine_settings import apply_settings
from llmopt.bench.facts import model_facts
from llmopt.bench.loaded import LoadedModels
from llmopt.bench.prepare import PreparedTarget
from llmopt.engine.config import EngineConfig
from llmopt.errors import UsageError
from llmopt.formats.weights import quantized_weights, scheme
from llmopt.layers.native_linear import WeightActivations
from llmopt.models.loader import open_checkpoint, resolve_dtype
from llmopt.models.tokenizer import load_tokenizer
from llmopt.quality.base_logits import KeptLogits
from llmopt.quality.measure import measure_quality
from llmopt.quality.noise import UNROUNDED, NoiseScores, noise_dtype
from llmopt.quality.options import QualityOptions
from llmopt.quality.scores import OnWindow, Scores, score_windows
from llmopt.quality.source import ModelLogits
from llmopt.quality.summary import summarize
from llmopt.quality.text import load_windows
from llmopt.quality.windows import EvaluationWindows
from llmopt.recipe.schema import Quality
from llmopt.results.schema import CostModel, ModelFacts, QualityRecord


def examine_weights(prepared: PreparedTarget, models: LoadedModels) -> tuple[ModelFacts, CostModel]:
    """The facts and, in our own engine, the cost of a target. Raises what loading raises."""
    model = prepared.load(models)
    if prepared.target.dummy_config is None:
        facts = model_facts(prepared.target.model, prepared.path, model, note=prepared.note)
    else:
        facts = dummy_facts(prepared.target, model, prepared.content_hash, prepared.note)
    cost = cost_model(
        model.config,
        weight_bytes=model.weight_bytes_per_token,
        dtype=model.dtype,
        engine=apply_settings(EngineConfig(), prepared.target.engine),
    )
    return facts, cost


class QualityComparison:
    """Targets against one base on one text, judged by one noise floor."""

    def __init__(self, quality: Quality, base: PreparedTarget, models: LoadedModels) -> None:
        """Load the base. Raises `UsageError` when the text is unfit, and what loading raises."""
        self._models = models
        self._options = QualityOptions(
            quality.text, quality.protocol, quality.window, quality.num_windows
        )
        self._windows = self._windows_of(base)
        self._base_path = base.path
        self._base = KeptLogits(self._logits(base))
        self._noise_dtype = self._choose_noise_dtype(base) if quality.noise else None
        self._is_quantized = quantized_weights(open_checkpoint(base.path)) is not None
        self._noise_run: Scores | None = None
        self._noise: NoiseScores | None = None

    @property
    def has_noise(self) -> bool:
        """Whether there is a noise floor: it is asked for, and the base runs in full precision."""
        return self._noise_dtype is not None

    def measure_noise(self, on_window: OnWindow) -> None:
        """Score the base in 16 bits, which all targets are then judged by. Raises as `measure`."""
        assert self._noise_dtype is not None, "there is a noise floor"
        noisy = self._model_logits(
            self._base_path, self._noise_dtype, self._noise_activations, self._base.name
        )
        self._noise_run = score_windows(noisy, self._base, self._windows, on_window=on_window)
        self._noise = NoiseScores.from_scores(self._noise_run, noisy.scheme)

    def measure(self, prepared: PreparedTarget, on_window: OnWindow) -> QualityRecord:
        """Score one target; `on_window` hears (done, total). Raises `UsageError` or `ModelError`.

        A target whose tokenizer reads the text as other tokens cannot be compared. One that is the
        noise run itself has its scores already.
        """
        if not self._windows_of(prepared).has_tokens_of(self._windows):
            raise UsageError(
                f"{prepared.target.name} and the base read the same text as different tokens",
                "Compare models that share a tokenizer.",
            )
        if self._noise_run is not None and self._is_noise_run(prepared):
            return summarize(
                self._noise_run,
                self._options,
                base_name=self._base.name,
                base_scheme=self._base.scheme,
                noise=self._noise,
            )
        return measure_quality(
            self._logits(prepared),
            self._base,
            self._windows,
            self._options,
            noise=self._noise,
            on_window=on_window,
        )

    @property
    def _noise_activations(self) -> WeightActivations:
        """Of the noise run; where weights are not quantized, those of the targets that share it."""
        return UNROUNDED if self._is_quantized else "auto"

    def _choose_noise_dtype(self, base: PreparedTarget) -> str | None:
        """The 16-bit dtype that the base is served in; None if it already runs in one."""
        model = self._models.get(base.path, base.target.dtype, base.target.activations)
        served = resolve_dtype("auto", model.config, model.device)
        return noise_dtype(_dtype_name(served), _dtype_name(model.dtype))

    def _is_noise_run(self, prepared: PreparedTarget) -> bool:
        """Whether a target is the base as it is in the noise run."""
        target = prepared.target
        if prepared.path != self._base_path:
            return False
        if self._is_quantized and target.activations != UNROUNDED:
            return False
        model = self._models.get(prepared.path, target.dtype, target.activations)
        return _dtype_name(model.dtype) == self._noise_dtype

    def _logits(self, prepared: PreparedTarget) -> ModelLogits:
        target = prepared.target
        return self._model_logits(prepared.path, target.dtype, target.activations, target.name)

    def _model_logits(
        self, path: Path, dtype: str, activations: WeightActivations, name: str
    ) -> ModelLogits:
        model = self._models.get(path, dtype, activations)
        return ModelLogits(model, name=name, scheme=scheme(open_checkpoint(path), model.dtype))

    def _windows_of(self, prepared: PreparedTarget) -> EvaluationWindows:
        return load_windows(load_tokenizer(prepared.path), self._options)


def _dtype_name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
