"""Loads: when requests come, how long they are, and what they are made of.

Plain data; knows nothing about files or tokens. The law: a load and a seed decide every request.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

LoadKind = Literal["closed", "constant", "poisson", "gamma", "burst", "ramp", "trace"]
SEARCHED_KINDS: tuple[LoadKind, ...] = ("constant", "poisson", "gamma")


@dataclass(frozen=True, slots=True)
class Lengths:
    """Lengths in tokens, drawn per request; what lies outside `low` to `high` becomes the bound.

    uniform: every length from `low` to `high` alike
    lognormal: of this `mean` and standard deviation `std`, before the bounds
    empirical: rows of `table`: JSON with numbers or [prompt, output] pairs, or a trace file; if
        prompts and outputs have one table, they are of one row
    source: what the trace or the prompt file says
    """

    kind: Literal["uniform", "lognormal", "empirical", "source"]
    high: int
    low: int = 1
    mean: float | None = None
    std: float | None = None
    table: str | None = None


@dataclass(frozen=True, slots=True)
class Workload:
    """What the prompts are made of.

    source: pieces of a text, or random tokens of its vocabulary
    prompts: the user's own in place of them: a JSONL file whose lines have "prompt" (text), and may
        have "output_tokens"; `prompt_tokens` of the load is then the room for the longest
    distinct_prompts: draw from so many prompts; absent: every prompt is its own, none hits a cache
    prefix_groups, prefix_tokens: the prompts of a group begin with the same tokens, so many
    turns, think_s: requests per conversation, each after the one before is done and a pause; its
        prompt is all that was said before, and `prompt_tokens` more. Replies stand in it as text of
        their length, so that every target is asked the same.
    """

    source: Literal["text", "random"] = "text"
    prompts: str | None = None
    distinct_prompts: int | None = None
    prefix_groups: int = 0
    prefix_tokens: int = 0
    turns: int = 1
    think_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Load:
    """Requests of one run: `num_requests`, or as many as `rate` gives in `duration_s`.

    closed: `concurrency` requests are in flight until all are done
    constant, poisson, gamma: `rate` requests per second, with gaps that are equal, exponential, or
        of a gamma distribution (shape `burstiness`: below 1 in bursts, above 1 more even)
    burst: all at once
    ramp: random as poisson, at a rate that goes from `start_rate` to `rate`, in `num_steps` or
        steadily
    trace: when and as long as the file says (Azure's CSV, Mooncake's JSONL, a result file of ours),
        times multiplied by `time_scale`
    All but the first are open: a request comes when it is due, whatever became of those before, and
    `concurrency` is how many the built-in engine serves at a time.

    slo: bounds on latencies, such as "ttft_p95<500ms,tpot_p95<50ms", that goodput is counted by. An
        open load with it and no `rate` is measured at the highest rate that keeps all of them.
    """

    concurrency: int
    num_requests: int | None = None
    prompt_tokens: int | Lengths | None = None  # absent: what the trace says
    output_tokens: int | Lengths | None = None  # absent: the same, or the prompts
    kind: LoadKind = "closed"
    rate: float | None = None
    start_rate: float | None = None
    num_steps: int | None = None
    burstiness: float | None = None
    duration_s: float | None = None
    trace: str | None = None
    time_scale: float = 1.0
    slo: str | None = None
    workload: Workload = Workload()

    @property
    def is_searched(self) -> bool:
        """Whether the rate is what is looked for."""
        return self.rate is None and self.slo is not None and self.kind in SEARCHED_KINDS


def load_suffixes(loads: Sequence[Load]) -> list[str]:
    """Return what tells the loads apart in the ids of cells, in order.

    "c<concurrency>" of a closed loop, "<kind>-r<rate>" of an open one; where that is not enough,
    fixed lengths ("-p<prompt>-o<output>") and then numbers follow.
    """
    suffixes = [_suffix(load) for load in loads]
    suffixes = [
        suffix + _lengths_suffix(load) if count > 1 else suffix
        for load, suffix, count in zip(loads, suffixes, _uses(suffixes), strict=True)
    ]
    seen: Counter[str] = Counter()
    for index, (suffix, count) in enumerate(zip(list(suffixes), _uses(suffixes), strict=True)):
        if count > 1:
            seen[suffix] += 1
            suffixes[index] = f"{suffix}-{seen[suffix]}"
    return suffixes


def _suffix(load: Load) -> str:
    if load.kind == "closed":
        return f"c{load.concurrency}"
    if load.is_searched:
        return f"{load.kind}-slo"
    return load.kind if load.rate is None else f"{load.kind}-r{load.rate:g}"


def _lengths_suffix(load: Load) -> str:
    lengths = (("p", load.prompt_tokens), ("o", load.output_tokens))
    return "".join(f"-{name}{length}" for name, length in lengths if isinstance(length, int))


def _uses(suffixes: Sequence[str]) -> list[int]:
    counts = Counter(suffixes)
    return [counts[suffix] for suffix in suffixes]
