"""The traces that a recipe replays: whether they are there, and where the published ones are.

Knows nothing about their rows. The law: a trace that is missing is told before anything is made.
"""

from collections.abc import Iterator
from pathlib import Path

from llmopt.recipe.check import Problem
from llmopt.recipe.schema import Recipe

_PUBLISHED = {
    ".csv": (
        "Azure's is AzureLLMInferenceTrace_conv.csv of github.com/Azure/AzurePublicDataset (data/)"
    ),
    ".jsonl": "Mooncake's are in github.com/kvcache-ai/Mooncake (FAST25-release/traces)",
}


def where_to_get(trace: str | Path) -> str:
    """What to do about a trace that is not there."""
    name = Path(trace).name
    published = _PUBLISHED.get(Path(trace).suffix)
    put = f"put it beside the recipe or in the current directory as {name}"
    return f"Check the path. {published}: {put}." if published else f"Check the path, or {put}."


def trace_problems(recipe: Recipe) -> Iterator[Problem]:
    """Yield the traces that are missing (a rule for `load_recipe`)."""
    for index, load in enumerate(recipe.loads):
        if load.trace is not None and not Path(load.trace).is_file():
            yield Problem(
                ("loads", index, "trace"),
                f"there is no trace {load.trace}",
                where_to_get(load.trace),
            )
