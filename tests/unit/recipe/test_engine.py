from dataclasses import fields, replace
from pathlib import Path
from typing import get_args

import pytest

from llmopt.engine.config import EngineConfig
from llmopt.engine.speculation.config import SpeculationConfig
from llmopt.errors import RecipeError, UsageError
from llmopt.layers.native_linear import WeightActivations
from llmopt.recipe.engine import Activations, EngineSettings, Speculation
from llmopt.recipe.load import load_recipe, read_engine, recipe_from_targets
from llmopt.recipe.schema import Base, Load, Target, cell_document, cells

LOADS = [Load(1, 4, 16, 8)]

TEXT = """\
name: r
base: {model: m, name: without, engine: {prefix_caching: false}}
targets:
  - {name: with, model: m}
  - name: guessing
    model: "dummy:config.json"
    quantize: w4g32
    engine:
      kv_dtype: int8
      speculation: {proposer: "layers:2", synthetic_acceptance: 0.5}
loads:
  - {concurrency: 1, num_requests: 4, prompt_tokens: 16, output_tokens: 8}
"""


def names(cls: type[object]) -> set[str]:
    return {field.name for field in fields(cls)}  # type: ignore[arg-type]  # a dataclass


def test_a_recipe_may_set_what_the_engine_has_and_nothing_else() -> None:
    assert names(EngineConfig) - names(EngineSettings) == {"priority_aging_steps"}
    assert names(EngineSettings) - names(EngineConfig) == {"activations"}  # of the model
    assert names(Speculation) <= names(SpeculationConfig)
    assert names(SpeculationConfig) - names(Speculation) == {"draft_sampling"}  # loads are greedy


def test_settings_are_read_for_the_base_and_for_targets(tmp_path: Path) -> None:
    path = tmp_path / "r.yaml"
    path.write_text(TEXT)
    recipe = load_recipe(path)
    assert recipe.base.as_target().engine == EngineSettings(prefix_caching=False)
    on, guessing = recipe.targets
    assert on.engine is None
    assert on.dummy_config is None
    assert guessing.dummy_config == "config.json"
    assert guessing.engine is not None
    assert guessing.engine.given() == {"kv_dtype": "int8"}
    assert guessing.engine.given_speculation() == {
        "proposer": "layers:2",
        "synthetic_acceptance": 0.5,
    }


def test_activations_are_those_of_the_layers() -> None:
    assert get_args(Activations) == get_args(WeightActivations)
    assert Target("t", "m").activations == "auto"
    assert Target("t", "m", engine=EngineSettings(policy="static")).activations == "auto"
    settings = EngineSettings(activations="bf16")
    assert Base("m", engine=settings).as_target().activations == "bf16"
    assert settings.given() == {}  # nothing that the engine itself has


def test_false_is_a_setting_and_absence_is_none() -> None:
    assert EngineSettings().given() == {}
    assert EngineSettings().given_speculation() is None
    assert EngineSettings(prefix_caching=False, speculation="ngram").given() == {
        "prefix_caching": False
    }
    assert EngineSettings(speculation="ngram").given_speculation() == {"proposer": "ngram"}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("engine: {polcy: static}", "Did you mean 'policy'"),
        ("engine: {policy: dynamic}", "fcfs, priority, static"),
        ("engine: {activations: int4}", "Allowed: auto, int8, int16, bf16"),
        ("engine: {speculation: {proposer: ngram, k: 3}}", "num_draft_tokens"),
        ("engine: {block_size: 1.5}", "a whole number"),
    ],
)
def test_what_is_not_a_setting_is_named_with_its_line(
    tmp_path: Path, text: str, message: str
) -> None:
    path = tmp_path / "r.yaml"
    path.write_text(TEXT.replace("{name: with, model: m}", f"{{name: with, model: m, {text}}}"))
    with pytest.raises(RecipeError, match=r"r\.yaml:4") as caught:
        load_recipe(path)
    assert message in str(caught.value)


def test_runs_of_another_engine_are_not_taken_up() -> None:
    recipe = recipe_from_targets(["m"], LOADS)
    (cell,) = cells(recipe)
    static = replace(cell, target=replace(cell.target, engine=EngineSettings(policy="static")))
    assert cell_document(recipe, cell) != cell_document(recipe, static)
    exact = replace(cell, target=replace(cell.target, engine=EngineSettings(activations="bf16")))
    assert cell_document(recipe, cell) != cell_document(recipe, exact)


@pytest.mark.parametrize(
    "text", ["policy: static, num_blocks: 4", "{policy: static, num_blocks: 4}"]
)
def test_settings_of_a_command_line(text: str) -> None:
    assert read_engine("--engine", text) == EngineSettings(policy="static", num_blocks=4)
    exact = EngineSettings(activations="int16")
    assert read_engine("--engine", "activations: int16") == exact


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("polcy: static", "--engine:1"),
        ("policy: 3", "fcfs, priority, static"),
        ("a: [", "not YAML"),
    ],
)
def test_settings_that_cannot_be_read(text: str, message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        read_engine("--engine", text)


def test_random_weights_are_named_after_their_config() -> None:
    engine = EngineSettings(policy="static")
    models = ["dummy:a/llama/config.json", "dummy:a/llama/config.json@w4g32", "dummy:big.json@nf4"]
    recipe = recipe_from_targets(models, LOADS, engine=engine)
    assert recipe.base == Base(models[0], "auto", "dummy-llama", engine)
    assert recipe.targets == (
        Target("dummy-llama-w4g32", models[0], "auto", "w4g32", engine),
        Target("dummy-big-nf4", "dummy:big.json", "auto", "nf4", engine),
    )


def test_a_base_of_random_weights_has_no_scheme() -> None:
    with pytest.raises(UsageError, match="is of a scheme"):
        recipe_from_targets(["dummy:config.json@w4g32"], LOADS)
    with pytest.raises(UsageError, match="the model is empty"):
        recipe_from_targets(["dummy:"], LOADS)
