"""Recipes from YAML files and from the targets of a command line.

Knows nothing about models or measuring. The law: whatever is wrong with a recipe file is one
RecipeError that says file:line, what was found and what is allowed; nothing is guessed or ignored.
"""

import itertools
import re
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import yaml

from llmopt.errors import RecipeError, UsageError
from llmopt.recipe.backends import OWN, BackendSpec
from llmopt.recipe.build import build, line_of
from llmopt.recipe.check import MAX_NAME_LEN, Problem, problems
from llmopt.recipe.check_loads import load_problems
from llmopt.recipe.engine import EngineSettings
from llmopt.recipe.files import beside
from llmopt.recipe.loads import Load
from llmopt.recipe.schema import DUMMY, Base, Dtype, Quality, Recipe, Target

Rule = Callable[[Recipe], Iterable[Problem]]

_RULES: tuple[Rule, ...] = (problems, load_problems)


def load_recipe(path: str | Path, *rules: Rule) -> Recipe:
    """Read a recipe file. Raises RecipeError (file:line, what was found, what is allowed).

    rules: what it must keep besides, in the view of those who will measure it
    """
    path = Path(path)
    root = _parse(path)
    recipe = beside(build(Recipe, root, str(path)), path.parent)
    for problem in itertools.chain(*(rule(recipe) for rule in (*_RULES, *rules))):
        line = line_of(root, problem.path)
        raise RecipeError(f"{path}:{line}: {problem.message}", problem.remedy)
    return recipe


def recipe_from_targets(
    targets: Sequence[str],
    loads: Sequence[Load],
    *,
    name: str = "bench",
    base: str | None = None,
    dtype: Dtype = "auto",
    repeats: int = 3,
    warmup_requests: int = 1,
    seed: int = 0,
    quality: Quality | None = None,
    price_per_hour: float | None = None,
    rules: Sequence[Rule] = (),
    engine: EngineSettings | None = None,
    backends: Sequence[BackendSpec] = (OWN,),
) -> Recipe:
    """Return the recipe of `llmopt bench TARGET...`, where no file is given.

    `targets` are models (alias, directory or hub id), named after their last path component, or
    "dummy:CONFIG@SCHEME": random weights of a scheme. `engine` serves all of them.
    `base` is what they are compared with: absent, the first of them. A target equal to the base
    is the base. Raises UsageError.
    """
    if not targets:
        raise UsageError("There is no target to measure", "Give at least one model or recipe.")
    base = targets[0] if base is None else base
    models = [base, *(model for model in targets if model != base)]
    if _dummy_scheme(base) is not None:
        raise UsageError(
            f"the base {base} is of a scheme, and others are compared with it",
            f"Name {base.rpartition('@')[0]} first, or as --base.",
        )
    names = _distinct_names(models)
    recipe = Recipe(
        name=name,
        base=Base(models[0], dtype, names[0], engine),
        targets=tuple(
            _target(target_name, model, dtype, engine)
            for target_name, model in zip(names[1:], models[1:], strict=True)
        ),
        loads=tuple(loads),
        repeats=repeats,
        warmup_requests=warmup_requests,
        seed=seed,
        quality=quality,
        price_per_hour=price_per_hour,
        backends=tuple(backends),
    )
    for problem in itertools.chain(*(rule(recipe) for rule in (*_RULES, *rules))):
        where = ".".join(str(part) for part in problem.path)
        raise UsageError(f"{where}: {problem.message}", problem.remedy)
    return recipe


def read_engine(where: str, text: str) -> EngineSettings:
    """Read settings as a recipe writes them, without braces too. Raises RecipeError."""
    wrapped = text if text.lstrip().startswith("{") else f"{{{text}}}"
    try:
        node = yaml.compose(wrapped, Loader=yaml.SafeLoader)
    except yaml.YAMLError:
        raise RecipeError(
            f"{where} is {text!r}, which is not YAML",
            'Write it as "policy: static, kv_dtype: int8".',
        ) from None
    assert node is not None, "braces are a node"
    return build(EngineSettings, node, where)


def _target(name: str, model: str, dtype: Dtype, engine: EngineSettings | None) -> Target:
    scheme = _dummy_scheme(model)
    if scheme is not None:
        model = model.removesuffix(f"@{scheme}")
    return Target(name, model, dtype, scheme, engine)


def _dummy_scheme(model: str) -> str | None:
    """The scheme of "dummy:CONFIG@SCHEME", if it names one."""
    _, at, scheme = model.rpartition("@")
    return scheme if model.startswith(DUMMY) and at else None


def _parse(path: Path) -> yaml.Node:
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise RecipeError(f"There is no recipe file {path}", "Check the path.") from None
    except UnicodeDecodeError:
        raise RecipeError(f"{path} is not UTF-8 text", "A recipe is a YAML file.") from None
    except OSError as error:
        raise RecipeError(
            f"The recipe {path} cannot be read ({error.strerror})", "Check the path."
        ) from None
    try:
        root = yaml.compose(text, Loader=yaml.SafeLoader)
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        raise RecipeError(f"{path}:{line}: not YAML: {error.problem}", "Mend the syntax.") from None
    except yaml.YAMLError as error:
        reason = str(error).splitlines()[0]
        raise RecipeError(f"{path} is not YAML: {reason}", "Mend the syntax.") from None
    except RecursionError:
        raise RecipeError(f"{path} is nested too deeply", "Flatten it.") from None
    if root is None:
        raise RecipeError(f"{path} is empty", "A recipe has at least name, base, targets.")
    return root


def _distinct_names(models: Sequence[str]) -> list[str]:
    """Return a file-safe name for each model; later ones of the same name get "-2", "-3"."""
    names: dict[str, str] = {}  # by lower case: case does not tell names apart
    for model in models:
        last = _last_part(model)
        stem = re.sub(r"[^A-Za-z0-9._-]+", "-", last)[:MAX_NAME_LEN].strip("-._") or "model"
        numbered = (f"{stem[: MAX_NAME_LEN - 5]}-{number}" for number in itertools.count(2))
        name = next(
            name
            for name in (stem, *itertools.islice(numbered, len(models)))
            if name.lower() not in names
        )
        names[name.lower()] = name
    return list(names.values())


def _last_part(model: str) -> str:
    """Of a path; of random weights that of their config, and the scheme."""
    if not model.startswith(DUMMY):
        return Path(model).name or Path(model).resolve().name
    scheme = _dummy_scheme(model) or ""
    config = Path(model.removeprefix(DUMMY).removesuffix(f"@{scheme}"))
    if config.name == "config.json":
        config = config.parent
    return "-".join(part for part in ("dummy", config.name.removesuffix(".json"), scheme) if part)
