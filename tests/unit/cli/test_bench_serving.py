"""What serves the load of `llmopt bench`: settings of the engine, and random weights."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from llmopt.bench import sweep
from llmopt.cli.app import app
from llmopt.errors import RecipeError, UsageError
from llmopt.hardware.ceilings import MeasuredCeilings
from llmopt.recipe.engine import EngineSettings
from llmopt.recipe.schema import Recipe, all_targets

RECIPES = Path(__file__).parents[3] / "recipes"


def run(*arguments: Any) -> Result:
    return CliRunner().invoke(app, ["bench", *map(str, arguments)])


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[Recipe]:
    """The recipes that would be measured; nothing is."""
    recipes: list[Recipe] = []

    def note(recipe: Recipe, *_: Any, **__: Any) -> list[Path]:
        recipes.append(recipe)
        raise UsageError("enough", "")

    monkeypatch.setattr(sweep, "run_recipe", note)
    return recipes


def test_settings_are_those_of_all_targets(asked: list[Recipe]) -> None:
    run("a", "b", "--engine", "kv_dtype: int8, prefix_caching: false, activations: bf16")
    (recipe,) = asked
    settings = EngineSettings(kv_dtype="int8", prefix_caching=False, activations="bf16")
    assert [target.engine for target in all_targets(recipe)] == [settings, settings]


def test_random_weights_stand_behind_the_models(asked: list[Recipe]) -> None:
    run("m", "--dummy-weights", "x/config.json", "--dummy-weights", "x/config.json@w4g32")
    (recipe,) = asked
    assert [(t.name, t.model, t.quantize) for t in all_targets(recipe)] == [
        ("m", "m", None),
        ("dummy-x", "dummy:x/config.json", None),
        ("dummy-x-w4g32", "dummy:x/config.json", "w4g32"),
    ]


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        (("a", "--engine", "policy: dynamic"), RecipeError, "'policy' is 'dynamic'"),
        (("a", "--engine", "sink_tokens: 4"), UsageError, "without an attention_window"),
        (
            ("a", "--dtype", "float32", "--engine", "activations: int16"),
            UsageError,
            "float32 on cpu has none",
        ),
        (("--dummy-weights", "c.json", "--dummy-weights", "c.json@w9"), UsageError, "'w9'"),
        ((RECIPES / "demo.yaml", "--engine", "policy: static"), UsageError, "--engine was given"),
        ((), UsageError, "no target"),
    ],
)
def test_what_makes_no_sense_is_refused_before_anything_is_loaded(
    options: tuple[Any, ...], error: type[Exception], message: str, asked: list[Recipe]
) -> None:
    result = run(*options)
    assert isinstance(result.exception, error)
    assert message in str(result.exception)
    assert asked == []


def test_a_config_alone_is_measured(
    make_tiny_llama: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ceilings = MeasuredCeilings(
        {"float32": 1e11}, 1e10, 2e10, "2026-01-01T00:00:00+00:00", 1, "cpu"
    )
    monkeypatch.setattr("llmopt.bench.site.measure_ceilings", lambda device: ceilings)
    config = tmp_path / "tiny.json"
    config.write_text((make_tiny_llama() / "config.json").read_text())
    engine = "{speculation: {proposer: ngram, adaptive: false, synthetic_acceptance: 1.0}}"
    result = run(
        *("--dummy-weights", config, "--dummy-weights", f"{config}@w4g32", "--dtype", "float32"),
        *("--concurrency", 1, "--requests", 6, "--prompt-tokens", 16, "--output-tokens", 8),
        *("--repeats", 1, "--engine", engine, "--out", tmp_path / "out", "--json"),
    )
    rows = json.loads(result.stdout)["rows"]
    assert [row["target"] for row in rows] == ["dummy-tiny", "dummy-tiny-w4g32"]
    for row in rows:
        assert row["is_dummy"] is True
        assert row["kld_mean"] is None
        assert row["status"] != "failed"
    (path,) = (tmp_path / "out").glob("*w4g32*/*.json")
    stats = json.loads(path.read_text())["runs"][0]["step_stats"]
    assert stats["num_accepted_tokens"] == stats["num_draft_tokens"] > 0
