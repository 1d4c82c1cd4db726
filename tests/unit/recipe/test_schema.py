import json
from dataclasses import replace

from llmopt.recipe.schema import (
    Base,
    Cell,
    Load,
    Recipe,
    Target,
    cell_document,
    cells,
    to_document,
)

RECIPE = Recipe(
    name="r",
    base=Base("m", "float32"),
    targets=(Target("bf16", "m", "bfloat16"),),
    loads=(Load(1, 4, 128, 64), Load(8, 16, 128, 64)),
)


def test_cells_go_load_by_load_with_the_base_first() -> None:
    ids = [cell.cell_id for cell in cells(RECIPE)]
    assert ids == ["r-fp32-c1", "r-bf16-c1", "r-fp32-c8", "r-bf16-c8"]
    assert cells(RECIPE)[0] == Cell("r-fp32-c1", Target("fp32", "m", "float32"), RECIPE.loads[0])


def test_loads_that_share_a_concurrency_are_told_apart_by_their_lengths() -> None:
    recipe = replace(RECIPE, targets=(), loads=(*RECIPE.loads, Load(8, 16, 512, 64)))
    ids = [cell.cell_id for cell in cells(recipe)]
    assert ids == ["r-fp32-c1", "r-fp32-c8-p128-o64", "r-fp32-c8-p512-o64"]


def test_the_base_is_named_after_its_dtype_unless_it_has_a_name() -> None:
    assert Base("m").as_target().name == "base"
    assert Base("m", "bfloat16").as_target() == Target("bf16", "m", "bfloat16")
    assert Base("m", "bfloat16", "full").as_target().name == "full"


def test_the_document_is_json_and_complete() -> None:
    document = to_document(RECIPE)
    assert json.loads(json.dumps(document)) == document
    base = {"model": "m", "dtype": "float32", "name": "fp32", "engine": None, "backends": None}
    assert document["base"] == base
    assert document["repeats"] == 3
    assert document["quality"] is None


def test_a_cell_is_the_same_whatever_else_the_recipe_measures() -> None:
    cell = cells(RECIPE)[1]
    document = cell_document(RECIPE, cell)
    wider = replace(RECIPE, targets=(*RECIPE.targets, Target("x", "x")), repeats=9)
    assert cell_document(wider, cell) == document
    assert cell_document(replace(RECIPE, seed=1), cell) != document
    assert json.loads(json.dumps(document)) == document
