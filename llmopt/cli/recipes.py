"""`llmopt recipes`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from llmopt.recipe.shipped import ShippedRecipe


def recipes(
    directory: Annotated[
        Path | None, typer.Argument(help="Where to look; the shipped recipes if absent.")
    ] = None,
    schema: Annotated[
        bool, typer.Option("--schema", help="Print the JSON Schema of recipe files.")
    ] = False,
    json: Annotated[bool, typer.Option("--json", help="Print the list as JSON.")] = False,
) -> None:
    """List the recipes that there are: what each compares, and how many cells it measures.

    Examples:

        llmopt recipes

        llmopt recipes --schema > recipe.schema.json
    """
    from llmopt.cli.output import print_json
    from llmopt.errors import UsageError
    from llmopt.recipe.json_schema import recipe_json_schema
    from llmopt.recipe.shipped import list_recipes, recipe_directory

    if schema:
        print_json(recipe_json_schema())
        return
    found = directory or recipe_directory()
    if found is None or not found.is_dir():
        where = "with this installation" if found is None else f"at {found}"
        raise UsageError(
            f"there is no directory of recipes {where}",
            "Name one, or take the recipes of the source tree.",
        )
    listed = list_recipes(found)
    if json:
        print_json([_plain(recipe) for recipe in listed])
        return
    for recipe in listed:
        _show(recipe)


def _plain(recipe: "ShippedRecipe") -> dict[str, object]:
    return {
        "name": recipe.path.stem,
        "path": recipe.path,
        "description": recipe.description,
        "num_cells": recipe.num_cells,
        "problem": recipe.problem,
    }


def _show(recipe: "ShippedRecipe") -> None:
    from rich.console import Console
    from rich.padding import Padding
    from rich.text import Text

    console = Console(highlight=False, width=100)
    title = Text(str(recipe.path), style="bold")
    if recipe.recipe is not None:
        title.append(f"  {recipe.num_cells} cells, {len(recipe.recipe.loads)} loads", style="dim")
    console.print(title)
    console.print(Padding(Text(recipe.problem or recipe.description), (0, 0, 0, 2)))
