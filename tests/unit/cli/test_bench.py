import json
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from llmopt.cli.app import app
from llmopt.errors import UsageError

RECIPES = Path(__file__).parents[3] / "recipes"


def run(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


@pytest.mark.parametrize(
    "option",
    [
        ("--rate", "2"),
        ("--concurrency", "4"),
        ("--prefix", "4x8"),
        ("--slo", "ttft<1s"),
        ("--repeats", "10"),
        ("--seed", "7"),
        ("--no-quality",),
        ("--text", "bundled"),
        ("--base", "smollm2-135m"),
        ("--dtype", "bfloat16"),
        ("--price-per-hour", "3"),
    ],
)
def test_what_a_recipe_says_itself_is_refused_beside_it_not_ignored(option):
    result = run("bench", RECIPES / "demo.yaml", *option)
    assert isinstance(result.exception, UsageError)
    assert f"{option[0].replace('--no-', '--')} was given" in str(result.exception)


def test_what_a_recipe_leaves_open_is_taken_beside_it(monkeypatch, tmp_path):
    taken = []

    def run_recipe(*arguments, **settings):
        taken.append((arguments, settings))
        raise typer.Exit

    monkeypatch.setattr("llmopt.bench.sweep.run_recipe", run_recipe)
    options = ("--out", tmp_path, "--work", tmp_path / "w", "--device", "cpu", "--profile")
    more = ("--until-ci", "3%", "--max-repeats", "9", "--json")
    assert run("bench", RECIPES / "demo.yaml", *options, *more).exit_code == 0
    ((arguments, settings),) = taken
    assert (arguments[0].until_ci, arguments[0].max_repeats) == (0.03, 9)
    assert arguments[1:3] == (tmp_path, tmp_path / "w")
    assert settings == {"device": "cpu", "profile": True}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--load", "closed", "--rate", "2"), "rate means nothing to a closed load"),
        (("--slo", "ttft<2"), "'ttft<2' is no bound"),
        (("--price-per-hour", "0", "--rate", "1"), "price_per_hour is 0"),
    ],
)
def test_a_load_that_makes_no_sense_is_refused_before_anything_is_loaded(options, message):
    result = run("bench", "no-such-model", *options)
    assert isinstance(result.exception, UsageError)
    assert message in str(result.exception)


def test_the_recipes_are_listed():
    listed = json.loads(run("recipes", RECIPES, "--json").stdout)
    assert {"demo", "load-shapes"} <= {recipe["name"] for recipe in listed}
    assert all(recipe["num_cells"] > 0 and recipe["problem"] is None for recipe in listed)
    shown = run("recipes", RECIPES).stdout
    assert "demo.yaml  10 cells, 2 loads" in shown
    assert "what is lost, what is gained." in " ".join(shown.split())


def test_the_schema_is_printed():
    schema = json.loads(run("recipes", "--schema").stdout)
    assert schema["title"] == "llmopt recipe"


def test_a_directory_that_is_not_there_is_refused(tmp_path):
    assert isinstance(run("recipes", tmp_path / "none").exception, UsageError)
