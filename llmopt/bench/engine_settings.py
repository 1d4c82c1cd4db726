"""The engine that serves a load: as large as the load needs, and else as the target says.

Knows nothing about checkpoints or memory. The law: two targets under one load differ in what their
recipe says and in nothing else.
"""

from collections.abc import Iterator
from dataclasses import replace

import torch

from llmopt.bench.workload_spec import LoadPlan
from llmopt.engine.config import EngineConfig
from llmopt.engine.speculation.config import SpeculationConfig
from llmopt.errors import UsageError
from llmopt.models.loader import DTYPES, resolve_activations
from llmopt.recipe.check import Path, Problem
from llmopt.recipe.engine import EngineSettings
from llmopt.recipe.schema import Base, Recipe, Target

BLOCK_SIZE = 16


def engine_config(plan: LoadPlan, settings: EngineSettings | None = None) -> EngineConfig:
    """The config for a load: room for as many requests of the longest kind as are served at a time,
    so that none is preempted, unless the settings say otherwise. Raises UsageError.
    """
    config = apply_settings(EngineConfig(block_size=BLOCK_SIZE), settings)
    request_tokens = plan.max_request_tokens
    config = replace(
        config,
        max_num_seqs=(settings and settings.max_num_seqs) or plan.spec.concurrency,
        max_model_len=config.max_model_len or request_tokens,
    )
    if config.num_blocks is None and config.kv_memory_bytes is None:
        each = -(-request_tokens // config.block_size)
        config = replace(config, num_blocks=config.max_num_seqs * each)
    return config


def apply_settings(config: EngineConfig, settings: EngineSettings | None) -> EngineConfig:
    """The config with what the settings say. Raises UsageError for what makes no sense."""
    if settings is None:
        return config
    changes = settings.given()
    speculation = settings.given_speculation()
    if speculation is not None:
        changes["speculation"] = SpeculationConfig(**speculation)
    return replace(config, **changes)


def _check_activations(served: Base | Target) -> None:
    """Raise UsageError for a dtype that has no such activations; what "auto" is, is known later."""
    if served.engine and served.engine.activations and served.dtype != "auto":
        cpu = torch.device("cpu")
        resolve_activations(served.engine.activations, DTYPES[served.dtype], cpu)


def engine_problems(recipe: Recipe) -> Iterator[Problem]:
    """Yield what is wrong with the engines of a recipe (a rule for `load_recipe`)."""
    base: tuple[Path, Base | Target] = (("base", "engine"), recipe.base)
    targets = ((("targets", i, "engine"), target) for i, target in enumerate(recipe.targets))
    for path, served in (base, *targets):
        try:
            apply_settings(EngineConfig(), served.engine)
            _check_activations(served)
        except UsageError as error:
            yield Problem(path, error.message, error.remedy)
