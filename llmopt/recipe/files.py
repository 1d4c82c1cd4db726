"""Where the files are that a recipe names: beside the recipe, or in the current directory.

Knows nothing about their content. The law: a path that exists as it is written is left so.
"""

from dataclasses import replace
from pathlib import Path

from llmopt.recipe.loads import Load
from llmopt.recipe.schema import DUMMY, Recipe


def beside(recipe: Recipe, directory: Path) -> Recipe:
    """Return the recipe with the traces and prompts of its loads and the configs of its random
    weights found in `directory`, where they are there and not in the current directory.
    """
    return replace(
        recipe,
        base=replace(recipe.base, model=_model(recipe.base.model, directory)),
        targets=tuple(
            replace(target, model=_model(target.model, directory)) for target in recipe.targets
        ),
        loads=tuple(_load(load, directory) for load in recipe.loads),
    )


def _model(model: str, directory: Path) -> str:
    if not model.startswith(DUMMY):
        return model
    return f"{DUMMY}{_found(model.removeprefix(DUMMY), directory)}"


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
