"""Where results come from: machines, software, recipes, and the commands that make them again.

Knows nothing about layout. The law: a command is quoted so that a shell reads what the file says,
whatever is in it.
"""

import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import yaml

from llmopt.report.rows import imported_from, machine
from llmopt.results.schema import CellResult, Environment


@dataclass(frozen=True, slots=True)
class Origin:
    """Everything that a reader needs to judge and repeat the measurement."""

    machines: tuple[tuple[str, tuple[tuple[str, str], ...]], ...]  # name, facts
    recipes: tuple[tuple[str, str], ...]  # name, YAML
    commands: tuple[str, ...]
    servers: tuple[tuple[str, str], ...]  # backend, the command that started it


def make_origin(results: Sequence[CellResult]) -> Origin:
    """The origin of these results, each machine, recipe and server once."""
    own = [result for result in results if imported_from(result) is None]
    machines = {(machine(result), tuple(_facts(result.environment))): None for result in own}
    recipes = {result.recipe_name: result.recipe for result in own}
    servers = {
        f"{result.backend.name} {result.backend.version}": result.backend.command
        for result in own
        if result.backend.command is not None
    }
    return Origin(
        machines=tuple(machines),
        recipes=tuple((name, _yaml(recipe)) for name, recipe in recipes.items()),
        commands=tuple(_commands(own)),
        servers=tuple((name, command) for name, command in servers.items() if command),
    )


def _facts(environment: Environment) -> Iterator[tuple[str, str]]:
    commit = environment.git_sha or "not from a checkout"
    yield "device", environment.device
    yield "cores, threads", f"{environment.cores}, {environment.num_threads}"
    yield "memory", f"{environment.memory_bytes / 1e9:.1f} GB"
    yield "instruction sets", ", ".join(environment.instruction_sets) or "not recorded"
    yield "system", environment.os
    yield "Python", environment.python
    yield "torch, transformers", f"{environment.torch}, {environment.transformers}"
    yield "llmopt", environment.llmopt
    yield "commit", f"{commit}, with uncommitted changes" if environment.git_dirty else commit


def _yaml(recipe: Mapping[str, object]) -> str:
    return yaml.safe_dump(dict(recipe), sort_keys=False, allow_unicode=True)


def _commands(results: Sequence[CellResult]) -> Iterator[str]:
    """One block per recipe and commit."""
    seen = {(result.environment.git_sha, result.recipe_name): None for result in results}
    for sha, name in seen:
        file = shlex.quote(f"{name}.yaml")
        if sha is not None:
            yield f"git checkout {shlex.quote(sha)}"
        yield f"llmopt bench {file} --out results  # the recipe below"
    if seen:
        yield "llmopt report results --format html --out report.html"
