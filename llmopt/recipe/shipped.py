"""The recipes that come with the source tree: where they are, and what they say of themselves.

Knows nothing about measuring. The law: a recipe is described by the comment that it begins with.
"""

from dataclasses import dataclass
from pathlib import Path

import llmopt
from llmopt.errors import LLMOptError
from llmopt.recipe.load import load_recipe
from llmopt.recipe.schema import Recipe, cells


@dataclass(frozen=True, slots=True)
class ShippedRecipe:
    """One file. `recipe` is None, and `problem` says why, if it cannot be read."""

    path: Path
    description: str
    recipe: Recipe | None
    problem: str | None = None

    @property
    def num_cells(self) -> int:
        """How many result files it gives."""
        return 0 if self.recipe is None else len(cells(self.recipe))


def recipe_directory() -> Path | None:
    """The directory `recipes` of the source tree that this package is part of, or of the working
    directory; None if there is neither, as with a wheel.
    """
    beside = Path(llmopt.__file__).resolve().parents[1] / "recipes"
    return next((path for path in (Path("recipes"), beside) if path.is_dir()), None)


def list_recipes(directory: Path) -> list[ShippedRecipe]:
    """Return the recipes of a directory by name; one that is broken is told, and hides no other."""
    return [_read(path) for path in sorted(directory.glob("*.y*ml"), key=lambda path: path.stem)]


def _read(path: Path) -> ShippedRecipe:
    try:
        recipe = load_recipe(path)
        return ShippedRecipe(path, _description(path), recipe)
    except LLMOptError as error:
        return ShippedRecipe(path, "", None, str(error))


def _description(path: Path) -> str:
    lines = path.read_text(encoding="utf-8").splitlines()
    comment = []
    for line in lines:
        if not line.startswith("#"):
            break
        comment.append(line.lstrip("# "))
    return " ".join(comment)
