"""What is true of a target whatever the load: its facts, its cost, its quality.

Knows nothing about runs. The law: quality is measured once per target, against one base.
"""

from collections.abc import Callable

import torch

from llmopt.bench.cost import cost_model
from llmopt.bench.facts import model_facts
from llmopt.bench.loaded import LoadedModels
from llmopt.bench.prepare import PreparedTarget
from llmopt.errors import UsageError
from llmopt.formats.weights import scheme
from llmopt.models.loader import open_checkpoint
from llmopt.models.tokenizer import load_tokenizer
from llmopt.quality.logits import BaseLogits
from llmopt.quality.measure import measure_quality
from llmopt.quality.options import QualityOptions
from llmopt.quality.text import EvaluationWindows, load_windows
from llmopt.recipe.schema import Quality
from llmopt.results.schema import CostModel, ModelFacts, QualityRecord


def examine_weights(prepared: PreparedTarget, models: LoadedModels) -> tuple[ModelFacts, CostModel]:
    """The facts and the cost of a target. Raises what loading raises."""
    model = models.get(prepared.path, prepared.target.dtype)
    facts = model_facts(prepared.target.model, prepared.path, model, note=prepared.note)
    cost = cost_model(
        model.config, weight_bytes=model.weight_bytes, kv_element_bytes=model.dtype.itemsize
    )
    return facts, cost


class QualityComparison:
    """Targets against one base on one text."""

    def __init__(self, quality: Quality, base: PreparedTarget, models: LoadedModels) -> None:
        """Load the base. Raises `UsageError` when the text is unfit, and what loading raises."""
        self._models = models
        self._options = QualityOptions(quality.text, quality.window, quality.num_windows)
        self._windows = self._windows_of(base)
        model = models.get(base.path, base.target.dtype)
        self._base = BaseLogits(
            model,
            self._windows,
            name=base.target.name,
            scheme=scheme(open_checkpoint(base.path), model.dtype),
        )

    def measure(
        self, prepared: PreparedTarget, on_window: Callable[[int, int], None]
    ) -> QualityRecord:
        """Score one target; `on_window` hears (done, total). Raises `UsageError` or `ModelError`.

        A target whose tokenizer reads the text as other tokens cannot be compared.
        """
        if not torch.equal(self._windows_of(prepared).token_ids, self._windows.token_ids):
            raise UsageError(
                f"{prepared.target.name} and the base read the same text as different tokens",
                "Compare models that share a tokenizer.",
            )
        model = self._models.get(prepared.path, prepared.target.dtype)
        return measure_quality(model, self._base, self._options, on_window)

    def _windows_of(self, prepared: PreparedTarget) -> EvaluationWindows:
        return load_windows(load_tokenizer(prepared.path), self._options)
