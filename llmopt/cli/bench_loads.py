"""The loads of a `llmopt bench` command line, from its options.

Knows nothing about measuring. The law: an option that would mean nothing is refused, by the same
rules as in a recipe.
"""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

from llmopt.errors import UsageError
from llmopt.recipe.check_loads import MIN_REQUESTS_PER_SLOT
from llmopt.recipe.loads import SEARCHED_KINDS, Lengths, Load, LoadKind, Workload

_SPREAD = re.compile(r"(?P<low>\d+)-(?P<high>\d+)")
_LOGNORMAL = re.compile(r"(?P<mean>\d+(?:\.\d+)?)~(?P<std>\d+(?:\.\d+)?)(?:<(?P<high>\d+))?")
_FAR_DEVIATIONS = 4  # above the mean lognormal lengths end, if no limit is given
_OPEN_REQUESTS = 100  # enough for the 95 % interval of a p95
_NO_LIMIT = 1 << 30  # tokens, of tables that have their own longest


@dataclass(frozen=True, slots=True)
class LoadOptions:
    """The options as they were given. Texts are read by `loads_of_options`."""

    kind: str | None
    concurrency: str | None
    requests: int | None
    duration_s: float | None
    rate: str | None
    start_rate: float | None
    num_steps: int | None
    burstiness: float | None
    trace: Path | None
    time_scale: float
    slo: str | None
    prompt_tokens: str | None
    output_tokens: str | None
    prompts: Path | None
    random_tokens: bool
    distinct_prompts: int | None
    prefix: str | None
    turns: int
    think_s: float


def loads_of_options(options: LoadOptions) -> list[Load]:
    """Return a load for each concurrency, and for each rate of an open loop.

    Raises UsageError.
    """
    kind = _kind(options)
    levels = _levels(options, kind)
    rates: list[float | None] = [None]
    if options.rate is not None:
        rates = list(_numbers("--rate", options.rate))
    is_traced = kind == "trace"
    prompt = options.prompt_tokens or (None if is_traced else "128")
    output = options.output_tokens or (None if is_traced or options.prompts else "64")
    return [
        Load(
            concurrency=_whole("--concurrency", level),
            num_requests=_num_requests(options, kind, level),
            prompt_tokens=_lengths("--prompt-tokens", prompt, is_traced),
            output_tokens=_lengths("--output-tokens", output, is_traced),
            kind=kind,
            rate=rate,
            start_rate=options.start_rate,
            num_steps=options.num_steps,
            burstiness=options.burstiness,
            duration_s=options.duration_s,
            trace=None if options.trace is None else str(options.trace),
            time_scale=options.time_scale,
            slo=options.slo,
            workload=_workload(options),
        )
        for level in levels
        for rate in rates
    ]


def _levels(options: LoadOptions, kind: LoadKind) -> list[float]:
    default = "1,8" if kind == "closed" else "8"
    return list(_numbers("--concurrency", options.concurrency or default))


def _kind(options: LoadOptions) -> LoadKind:
    """The kind that was named, or the one that the other options speak of."""
    kinds: tuple[LoadKind, ...] = get_args(LoadKind)
    if options.kind is not None:
        for kind in kinds:
            if kind == options.kind:
                return kind
        raise UsageError(f"--load is {options.kind!r}", f"Use {', '.join(kinds)}.")
    if options.trace is not None:
        return "trace"
    if options.start_rate is not None:
        return "ramp"
    if options.burstiness is not None:
        return "gamma"
    return "poisson" if options.rate is not None or options.slo is not None else "closed"


def _num_requests(options: LoadOptions, kind: LoadKind, level: float) -> int | None:
    if options.requests is not None or options.duration_s is not None or kind == "trace":
        return options.requests
    concurrency = _whole("--concurrency", level)
    if kind in SEARCHED_KINDS and options.slo is not None and options.rate is None:
        return max(_OPEN_REQUESTS, MIN_REQUESTS_PER_SLOT * concurrency)
    return _OPEN_REQUESTS if kind in (*SEARCHED_KINDS, "ramp") else max(4, 2 * concurrency)


def _lengths(option: str, text: str | None, is_traced: bool) -> int | Lengths | None:
    """128; 64-256 (uniform); 200~100<1024 (lognormal: mean, deviation, longest); a table."""
    if text is None:
        return None
    if text.isdecimal():
        return int(text)
    if is_traced and text[:1] == "<" and text[1:].isdecimal():
        return Lengths("source", high=int(text[1:]))
    if spread := _SPREAD.fullmatch(text):
        return Lengths("uniform", high=int(spread["high"]), low=int(spread["low"]))
    if normal := _LOGNORMAL.fullmatch(text):
        mean, std = float(normal["mean"]), float(normal["std"])
        high = int(normal["high"] or mean + _FAR_DEVIATIONS * std)
        return Lengths("lognormal", high, mean=mean, std=std)
    table, _, longest = text.partition("<")
    if Path(table).suffix in (".json", ".jsonl", ".csv") and (not longest or longest.isdecimal()):
        return Lengths("empirical", high=int(longest or _NO_LIMIT), table=table)
    raise UsageError(
        f"{option} is {text!r}",
        "Give 128, 64-256, 200~100 (mean~deviation), or a table of lengths; the last two may end in"
        " a limit such as <1024.",
    )


def _workload(options: LoadOptions) -> Workload:
    groups, tokens = 0, 0
    if options.prefix is not None:
        found = re.fullmatch(r"(\d+)x(\d+)", options.prefix)
        if found is None:
            raise UsageError(
                f"--prefix is {options.prefix!r}", "Give groups x tokens, such as 4x256."
            )
        groups, tokens = int(found[1]), int(found[2])
    return Workload(
        source="random" if options.random_tokens else "text",
        prompts=None if options.prompts is None else str(options.prompts),
        distinct_prompts=options.distinct_prompts,
        prefix_groups=groups,
        prefix_tokens=tokens,
        turns=options.turns,
        think_s=options.think_s,
    )


def _numbers(option: str, text: str) -> list[float]:
    try:
        return [float(part) for part in text.split(",")]
    except ValueError as error:
        raise UsageError(
            f"{option} is {text!r}", "Give numbers with commas, such as 1,8."
        ) from error


def _whole(option: str, value: float) -> int:
    if not value.is_integer():
        raise UsageError(f"{option} is {value:g}", "Give whole numbers with commas, such as 1,8.")
    return int(value)
