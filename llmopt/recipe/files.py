"""Where the files are that a recipe names: beside the recipe, or in the current directory.

Knows nothing about their content. The law: a path that exists as it is written is left so.
"""

from dataclasses import replace
from pathlib import Path

from llmopt.recipe.loads import Load
from llmopt.recipe.schema import Recipe


def beside(recipe: Recipe, directory: Path) -> Recipe:
    """Return the recipe with the traces and prompts of its loads found in `directory`, where they
    are there and not in the current directory.
    """
    return replace(recipe, loads=tuple(_load(load, directory) for load in recipe.loads))


def _load(load: Load, directory: Path) -> Load:
    prompts = _found(load.workload.prompts, directory)
    return replace(
        load,
        trace=_found(load.trace, directory),
        workload=replace(load.workload, prompts=prompts),
    )


def _found(name: str | None, directory: Path) -> str | None:
    if name is None or Path(name).exists() or not (directory / name).exists():
        return name
    return str(directory / name)
