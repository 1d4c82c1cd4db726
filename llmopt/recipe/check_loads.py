"""The rules that the loads of a recipe must keep beyond the types of their fields.

Knows nothing about YAML or files. The law: a load without problems says all that its kind needs,
and nothing that would be ignored.
"""

import math
from collections.abc import Iterator

from llmopt.recipe.check import Path, Problem
from llmopt.recipe.loads import Lengths, Load, LoadKind, Workload
from llmopt.recipe.schema import Recipe

MIN_RUNS = 3  # fewer have no interval
MIN_REQUESTS_PER_SLOT = 2  # of a search: a queue that grows outgrows the requests in service
RATED: tuple[LoadKind, ...] = ("constant", "poisson", "gamma", "ramp")

# fields that only some kinds have, and whether those need them
_OWN_FIELDS: dict[str, tuple[tuple[LoadKind, ...], bool]] = {
    "rate": (RATED, True),
    "start_rate": (("ramp",), True),
    "num_steps": (("ramp",), False),
    "burstiness": (("gamma",), True),
    "duration_s": ((*RATED, "trace"), False),
    "trace": (("trace",), True),
}


def load_problems(recipe: Recipe) -> Iterator[Problem]:
    """Yield every broken rule of the recipe's loads, in their order, and of how often they run."""
    seen: list[Load] = []
    for index, load in enumerate(recipe.loads):
        path: Path = ("loads", index)
        yield from _number_problems(path, load)
        yield from _kind_problems(path, load)
        yield from _size_problems(path, load)
        yield from _workload_problems(path, load)
        if load in seen:
            yield Problem(
                path,
                "this load has the concurrency and lengths of an earlier one, and all else",
                "Remove one of the two.",
            )
        seen.append(load)
    yield from repeat_problems(recipe)


def repeat_problems(recipe: Recipe) -> Iterator[Problem]:
    """Yield what is wrong with how often the loads are run."""
    bound = recipe.until_ci
    if bound is None:
        return
    if not 0 < bound < 1:
        yield Problem(
            ("until_ci",),
            f"until_ci is {bound:g}",
            "Use a share of the number, such as 0.03 for 3 %.",
        )
    if recipe.max_repeats < max(recipe.repeats, MIN_RUNS):
        yield Problem(
            ("max_repeats",),
            f"max_repeats is {recipe.max_repeats}, with {recipe.repeats} repeats and intervals that"
            f" need {MIN_RUNS}",
            f"Use at least {max(recipe.repeats, MIN_RUNS)}.",
        )


def _number_problems(path: Path, load: Load) -> Iterator[Problem]:
    work = ("workload",)
    counts: list[tuple[Path, int | Lengths | None, int]] = [
        (("concurrency",), load.concurrency, 1),
        (("num_requests",), load.num_requests, 1),
        (("prompt_tokens",), load.prompt_tokens, 1),
        (("output_tokens",), load.output_tokens, 1),
        (("num_steps",), load.num_steps, 2),
        ((*work, "distinct_prompts"), load.workload.distinct_prompts, 1),
        ((*work, "prefix_groups"), load.workload.prefix_groups, 0),
        ((*work, "prefix_tokens"), load.workload.prefix_tokens, 0),
        ((*work, "turns"), load.workload.turns, 1),
    ]
    for where, count, minimum in counts:
        if isinstance(count, int) and count < minimum:
            yield Problem(
                (*path, *where), f"{where[-1]} is {count}", f"It must be at least {minimum}."
            )
    for name in ("rate", "start_rate", "burstiness", "duration_s", "time_scale"):
        value = getattr(load, name)
        if value is not None and not (math.isfinite(value) and value > 0):
            yield Problem((*path, name), f"{name} is {value:g}", "It must be above 0.")
    if not (math.isfinite(load.workload.think_s) and load.workload.think_s >= 0):
        yield Problem(
            (*path, *work, "think_s"), f"think_s is {load.workload.think_s:g}", "Use 0 or more."
        )
    for name in ("prompt_tokens", "output_tokens"):
        lengths = getattr(load, name)
        if isinstance(lengths, Lengths):
            yield from _lengths_problems((*path, name), lengths)


def _lengths_problems(path: Path, lengths: Lengths) -> Iterator[Problem]:
    if not 1 <= lengths.low <= lengths.high:
        yield Problem(
            path, f"lengths from {lengths.low} to {lengths.high}", "Use 1 <= low <= high."
        )
    is_normal = lengths.kind == "lognormal"
    for name in ("mean", "std"):
        value = getattr(lengths, name)
        if is_normal and not (value is not None and math.isfinite(value) and value > 0):
            yield Problem((*path, name), f"lognormal lengths need {name}", "Use a number above 0.")
        if not is_normal and value is not None:
            yield Problem((*path, name), f"{lengths.kind} lengths have no {name}", "Remove it.")
    if (lengths.kind == "empirical") != (lengths.table is not None):
        yield Problem(
            (*path, "table"),
            f"{lengths.kind} lengths {'have no' if lengths.table else 'need a'} table",
            "Remove it." if lengths.table else "Give a JSON file of lengths, or a trace.",
        )


def _kind_problems(path: Path, load: Load) -> Iterator[Problem]:
    for name, (kinds, is_needed) in _OWN_FIELDS.items():
        given = getattr(load, name) is not None
        if given and load.kind not in kinds:
            yield Problem(
                (*path, name),
                f"{name} means nothing to a {load.kind} load",
                f"Remove it, or use the kind {' or '.join(kinds)}.",
            )
        if not given and is_needed and load.kind in kinds and not load.is_searched:
            yield Problem(path, f"a {load.kind} load needs {name}", "Add it.")
    if load.kind != "trace" and load.time_scale != 1:
        yield Problem((*path, "time_scale"), "only a trace has a time_scale", "Remove it.")


def _size_problems(path: Path, load: Load) -> Iterator[Problem]:
    if load.num_requests is None and load.duration_s is None and load.kind != "trace":
        needs = "num_requests or duration_s" if load.kind in RATED else "num_requests"
        yield Problem(path, f"a {load.kind} load needs {needs}", "Add one.")
    if load.num_requests is not None and load.duration_s is not None:
        yield Problem(
            (*path, "duration_s"), "num_requests and duration_s are both given", "Remove one."
        )
    if load.is_searched and load.num_requests is None:
        yield Problem(path, "a search for the rate needs num_requests", "Add it, such as 100.")
    fewest = MIN_REQUESTS_PER_SLOT * load.concurrency
    if load.is_searched and load.num_requests and load.num_requests < fewest:
        yield Problem(
            (*path, "num_requests"),
            f"{load.num_requests} requests, {load.concurrency} served at a time, show no queue that"
            " grows, which a search for the rate must see",
            f"Ask for at least {fewest} requests.",
        )
    if load.kind == "closed" and load.num_requests and load.num_requests < load.concurrency:
        yield Problem(
            (*path, "num_requests"),
            f"{load.num_requests} requests cannot keep {load.concurrency} in flight",
            f"Ask for at least {load.concurrency} requests.",
        )
    from_file = {"prompt_tokens": False, "output_tokens": load.workload.prompts is not None}
    for name, has_source in from_file.items():
        lengths = getattr(load, name)
        has_source |= load.kind == "trace"
        if lengths is None and not has_source:
            yield Problem(path, f"the load lacks {name}", "Add a length, such as 128.")
        is_traced = isinstance(lengths, Lengths) and lengths.kind == "source"
        if isinstance(lengths, Lengths) and is_traced != (load.kind == "trace"):
            yield Problem(
                (*path, name),
                f"{lengths.kind} lengths of a {load.kind} load",
                "A trace has lengths of the kind source or one for all; other loads have others.",
            )
        if isinstance(lengths, Lengths) and name == "prompt_tokens" and load.workload.prompts:
            yield Problem(
                (*path, name), "prompts of a file have lengths", "Give the room for the longest."
            )


def _workload_problems(path: Path, load: Load) -> Iterator[Problem]:
    work = load.workload
    path = (*path, "workload")
    if (work.prefix_groups > 0) != (work.prefix_tokens > 0):
        yield Problem(
            path, "prefix_groups and prefix_tokens belong together", "Give both or neither."
        )
    shortest = _shortest(load.prompt_tokens)
    if work.prefix_tokens and shortest <= work.prefix_tokens:
        yield Problem(
            (*path, "prefix_tokens"),
            f"a prompt of {shortest} tokens has no room for {work.prefix_tokens} shared ones and"
            " one of its own",
            "Use longer prompts or a shorter prefix.",
        )
    if work.think_s and work.turns == 1:
        yield Problem((*path, "think_s"), "one turn has no pause after it", "Use turns above 1.")
    yield from _exclusive_problems(path, load, work)


def _exclusive_problems(path: Path, load: Load, work: Workload) -> Iterator[Problem]:
    features = {
        "a trace": load.kind == "trace",
        "prompts of a file": work.prompts is not None,
        "distinct_prompts": work.distinct_prompts is not None,
        "turns": work.turns > 1,
        "prefix_groups": work.prefix_groups > 0,
    }
    chosen = [name for name, is_used in features.items() if is_used]
    if work.prompts is not None and work.source == "random":
        chosen.append("random tokens")
    allowed = [{"turns", "prefix_groups"}, {"distinct_prompts", "prefix_groups"}]
    if len(chosen) > 1 and set(chosen) not in allowed:
        yield Problem(path, f"{' and '.join(chosen)} do not go together", "Keep one of them.")


def _shortest(lengths: int | Lengths | None) -> int:
    if lengths is None:
        return 1
    return lengths if isinstance(lengths, int) else lengths.low
