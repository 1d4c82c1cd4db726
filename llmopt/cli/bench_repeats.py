"""How often `llmopt bench` measures, from its options.

Knows nothing about measuring. The law: an option that would mean nothing is refused, by the same
rules as in a recipe.
"""

import re
from dataclasses import replace

from llmopt.errors import UsageError
from llmopt.recipe.check_loads import repeat_problems
from llmopt.recipe.schema import Recipe

_SHARE = re.compile(r"(?P<number>\d+(?:\.\d*)?|\.\d+)\s*(?P<percent>%?)")


def with_repeats(recipe: Recipe, until_ci: str | None, max_repeats: int | None) -> Recipe:
    """Return the recipe with what was given in place of its own. Raises UsageError."""
    if until_ci is not None:
        recipe = replace(recipe, until_ci=_share(until_ci))
    if max_repeats is not None:
        if recipe.until_ci is None:
            raise UsageError(
                f"--max-repeats {max_repeats} means nothing without --until-ci",
                "Add --until-ci 3%, or use --repeats.",
            )
        recipe = replace(recipe, max_repeats=max_repeats)
    for problem in repeat_problems(recipe):
        raise UsageError(problem.message, problem.remedy)
    return recipe


def _share(text: str) -> float:
    """3% or 0.03."""
    found = _SHARE.fullmatch(text.strip())
    if found is None:
        raise UsageError(f"--until-ci is {text!r}", "Give a share such as 3% or 0.03.")
    return float(found["number"]) / (100 if found["percent"] else 1)
