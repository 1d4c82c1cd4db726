from dataclasses import replace
from pathlib import Path

import pytest
from typer.testing import CliRunner

from llmopt.cli.app import app
from llmopt.cli.bench_repeats import with_repeats
from llmopt.errors import RecipeError, UsageError
from llmopt.recipe.load import load_recipe
from llmopt.recipe.schema import Base, Recipe

RECIPE = Recipe("r", Base("m"), (), repeats=3)


@pytest.mark.parametrize(
    ("text", "share"),
    [("3%", 0.03), ("3 %", 0.03), ("0.03", 0.03), (".5%", 0.005), ("2.5%", 0.025)],
)
def test_the_bound_is_a_share_or_a_percentage(text, share):
    assert with_repeats(RECIPE, text, None).until_ci == pytest.approx(share)
    assert with_repeats(RECIPE, text, None).max_repeats == 20
    assert with_repeats(RECIPE, text, 7).max_repeats == 7


def test_what_is_not_given_stays_the_recipes():
    own = replace(RECIPE, until_ci=0.05, max_repeats=9)
    assert with_repeats(own, None, None) == own
    assert with_repeats(own, "2%", None) == replace(own, until_ci=0.02)
    assert with_repeats(own, None, 4) == replace(own, max_repeats=4)
    assert with_repeats(RECIPE, None, None) == RECIPE


@pytest.mark.parametrize(
    ("until_ci", "max_repeats", "message"),
    [
        ("three", None, "--until-ci is 'three'"),
        ("3", None, "until_ci is 3"),
        ("0%", None, "until_ci is 0"),
        ("3%", 2, "max_repeats is 2, with 3 repeats and intervals that need 3"),
        (None, 9, "--max-repeats 9 means nothing without --until-ci"),
    ],
)
def test_what_makes_no_sense_is_refused(until_ci, max_repeats, message):
    with pytest.raises(UsageError) as caught:
        with_repeats(RECIPE, until_ci, max_repeats)
    assert message in str(caught.value)


def test_a_recipe_has_them_too(tmp_path: Path):
    path = tmp_path / "r.yaml"
    head = "name: r\nbase: {model: m}\ntargets: []\n"
    load = "loads: [{concurrency: 1, num_requests: 2, prompt_tokens: 8, output_tokens: 4}]\n"
    path.write_text(f"{head}{load}until_ci: 0.03\nmax_repeats: 12\n")
    assert (load_recipe(path).until_ci, load_recipe(path).max_repeats) == (0.03, 12)
    path.write_text(f"{head}{load}until_ci: 3\n")
    with pytest.raises(RecipeError, match=r"r.yaml:5: until_ci is 3"):
        load_recipe(path)


def test_the_command_line_refuses_before_anything_is_loaded():
    result = CliRunner().invoke(app, ["bench", "no-such-model", "--until-ci", "3"])
    assert isinstance(result.exception, UsageError)
    assert "0.03 for 3 %" in str(result.exception)
