"""The rules that a recipe must keep beyond the types of its fields.

Knows nothing about YAML or lines: a broken rule is a path to a field, what is wrong with it and
what to do. The law: `problems(recipe)` is empty exactly when the recipe can be measured as
written, as far as that can be known without touching a model; loads have rules of their own
(`check_loads`).
"""

import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from llmopt.recipe.backends import BackendSpec
from llmopt.recipe.schema import (
    DUMMY,
    QuantizeSpec,
    Recipe,
    all_backends,
    all_targets,
    named_backends,
)

Path = tuple[str | int, ...]  # ("loads", 1, "concurrency")

MAX_NAME_LEN = 64  # names become directory names

UNIFORM_METHODS = ("rtn", "gptq", "qronos", "awq", "awq+gptq")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]*")


@dataclass(frozen=True, slots=True)
class Problem:
    """A broken rule: where, what was found, and what to do."""

    path: Path
    message: str
    remedy: str


def problems(recipe: Recipe) -> Iterator[Problem]:
    """Yield every broken rule of the recipe, in the order of its fields."""
    yield from _name_problems(recipe)
    yield from _count_problems(recipe)
    for index, target in enumerate(recipe.targets):
        if isinstance(target.quantize, QuantizeSpec):
            yield from _quantize_problems(("targets", index, "quantize"), target.quantize)
    yield from _backend_problems(recipe)
    if not recipe.loads and recipe.quality is None:
        yield Problem(
            ("loads",), "there is neither a load nor quality", "Give at least one of the two."
        )


def _name_problems(recipe: Recipe) -> Iterator[Problem]:
    named: list[tuple[Path, str]] = [(("name",), recipe.name)]
    named.append((("base", "name"), recipe.base.as_target().name))
    named += [(("targets", i, "name"), target.name) for i, target in enumerate(recipe.targets)]
    for path, name in named:
        if not _NAME.fullmatch(name) or len(name) > MAX_NAME_LEN:
            yield Problem(
                path,
                f"{name!r} cannot be used as a name",
                f"Use at most {MAX_NAME_LEN} letters, digits, '.', '_', '+' and '-', "
                "beginning with a letter or digit.",
            )
    models: list[tuple[Path, str]] = [(("base", "model"), recipe.base.model)]
    models += [(("targets", i, "model"), target.model) for i, target in enumerate(recipe.targets)]
    for path, model in models:
        if not model.removeprefix(DUMMY).strip():
            yield Problem(path, "the model is empty", "Give an alias, a directory or a hub id.")
    yield from _repeated_name_problems(recipe)


def _repeated_name_problems(recipe: Recipe) -> Iterator[Problem]:
    seen: set[str] = set()
    for index, target in enumerate(all_targets(recipe)):
        if target.name.lower() in seen:
            yield Problem(
                ("targets", index - 1, "name"),
                f"the name {target.name!r} is used twice (the base is named "
                f"{recipe.base.as_target().name!r})",
                "Give every target a name of its own; case does not tell names apart.",
            )
        seen.add(target.name.lower())


def _count_problems(recipe: Recipe) -> Iterator[Problem]:
    counts: list[tuple[Path, int, int]] = [
        (("repeats",), recipe.repeats, 1),
        (("warmup_requests",), recipe.warmup_requests, 0),
        (("seed",), recipe.seed, 0),
        (("calibration", "num_samples"), recipe.calibration.num_samples, 1),
        (("calibration", "sample_tokens"), recipe.calibration.sample_tokens, 2),
    ]
    if recipe.quality is not None and recipe.quality.window is not None:
        counts.append((("quality", "window"), recipe.quality.window, 2))
    if recipe.quality is not None and recipe.quality.num_windows is not None:
        counts.append((("quality", "num_windows"), recipe.quality.num_windows, 2))
    price = recipe.price_per_hour
    if price is not None and not 0 < price < math.inf:
        yield Problem(("price_per_hour",), f"price_per_hour is {price:g}", "It must be above 0.")
    for path, value, minimum in counts:
        if value < minimum:
            yield Problem(path, f"{path[-1]} is {value}", f"It must be at least {minimum}.")


def _backend_problems(recipe: Recipe) -> Iterator[Problem]:
    """Of the runtimes' addresses, arguments and labels; which names there are is known above."""
    lists: list[tuple[Path, Sequence[object] | None]] = [(("backends",), recipe.backends)]
    lists.append((("base", "backends"), recipe.base.backends))
    lists += [(("targets", i, "backends"), each.backends) for i, each in enumerate(recipe.targets)]
    for path, backends in lists:
        if backends is not None and not backends:
            yield Problem(path, "no backend is named", 'Name one, such as "llmopt".')
    named = named_backends(recipe)
    for path, spec in named:
        yield from _spec_problems(path, spec)
    titles = [spec.title.lower() for spec in all_backends(recipe)]
    for path, spec in named:
        if titles.count(spec.title.lower()) > 1:
            yield Problem(
                path,
                f"two different backends are called {spec.title!r}",
                "Give each a label of its own.",
            )


def _spec_problems(path: Path, spec: BackendSpec) -> Iterator[Problem]:
    if not _NAME.fullmatch(spec.title) or len(spec.title) > MAX_NAME_LEN:
        yield Problem(path, f"{spec.title!r} cannot be a label", "Use letters, digits and '-'.")
    if spec.url is not None and not re.fullmatch(r"https?://[^\s/]+(/\S*)?", spec.url):
        yield Problem(
            (*path, "url"), f"{spec.url!r} is no URL", "Write it as http://127.0.0.1:8000."
        )
    only_started = (
        ("server_args", bool(spec.server_args)),
        ("reuse_server", spec.reuse_server),
        ("start_timeout_s", spec.start_timeout_s is not None),
    )
    only_attached = (("model", spec.model is not None), ("api_key_env", bool(spec.api_key_env)))
    for name, is_given in only_started if spec.url is not None else only_attached:
        if is_given:
            kind = "runs already" if spec.url is not None else "is started here"
            yield Problem(
                (*path, name), f"{name} means nothing for a server that {kind}", "Remove it."
            )
    for name in ("start_timeout_s", "request_timeout_s"):
        value = getattr(spec, name)
        if value is not None and not 0 < value < math.inf:
            yield Problem((*path, name), f"{name} is {value:g}", "It must be above 0.")


def _quantize_problems(path: Path, spec: QuantizeSpec) -> Iterator[Problem]:
    uniform = spec.method in UNIFORM_METHODS
    if uniform != (spec.bits is not None):
        yield Problem(
            (*path, "bits"),
            f"{spec.method} {'needs' if uniform else 'has no choice of'} bits",
            "Add bits, such as 4." if uniform else "Remove it.",
        )
    if (spec.method == "gguf") != (spec.mix is not None):
        yield Problem(
            (*path, "mix"),
            f"{spec.method} {'needs' if spec.mix is None else 'has no'} mix",
            "Add one, such as q4_k_m." if spec.mix is None else "Remove it.",
        )
    if spec.group_size is not None and spec.group_size < 1:
        yield Problem(
            (*path, "group_size"),
            f"group_size is {spec.group_size}",
            "Use a positive number, such as 64, or null for one group per output row.",
        )
    if uniform and spec.format in ("bitsandbytes", "gguf"):
        yield Problem(
            (*path, "format"),
            f"{spec.method} weights cannot be stored as {spec.format}",
            "Use the format gptq, awq or compressed-tensors.",
        )
    if spec.format == "awq" and (spec.bits != 4 or spec.group_size is None):
        yield Problem(
            (*path, "format"),
            "the format awq holds 4-bit weights in groups only",
            "Use bits 4 and a group_size, or the format gptq or compressed-tensors.",
        )
