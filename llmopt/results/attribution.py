"""Where time went: steps by size, the parts of a run's time, the parts of a step.

Part of the schema (`llmopt.results.schema`); knows nothing about engines, models or clocks. The
law: parts of a whole are never negative and sum to it, and what could not be measured is absent
(None, or no part), never 0.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, fields
from typing import Literal

PartName = Literal[
    "weights",
    "matmul",
    "kv",
    "attention",
    "lm_head",
    "operators",
    "sampling",
    "drafting",
    "scheduling",
    "update",
    "client",
    "idle",
    "unattributed",
]
_COUNTER = re.compile(r"steps_(\d+)x(\d+)_(\w+)")


@dataclass(frozen=True, slots=True)
class StepGroup:
    """Engine steps with about the same numbers of tokens and requests; every field is a sum.

    In a file these are counters of a run's `step_stats`, `steps_<tokens>x<requests>_<field>`, so
    that they can be subtracted as all counters are.
    """

    num_steps: float
    num_requests: float  # that were computed
    num_tokens: float  # that were computed
    num_rows: float  # hidden states that went through the lm_head
    num_head_steps: float  # in which there were any
    num_attended: float  # pairs of a token and one that it sees, mean over the layers
    kv_bytes: float  # of keys and values that the steps' requests see
    lm_head_bytes: float | None  # of its weights, in all those steps; None: not known
    forward_s: float  # tensors in, model, logits out
    sample_s: float  # from logits to tokens


@dataclass(frozen=True, slots=True)
class TimePart:
    """A part of a whole time.

    ideal_s: what its bytes or FLOPs need at the measured ceilings, where it has any. It is above
    `seconds` only if a ceiling was too low, or bytes came from a processor's cache.
    """

    name: PartName
    seconds: float
    ideal_s: float | None = None


@dataclass(frozen=True, slots=True)
class Attribution:
    """Where the wall time of some runs went: the seconds of the parts sum to `wall_s`.

    weights         linear layers, while reading their weights is what bounds them
    matmul          linear layers, while FLOPs bound them
    kv, attention   attention, bound by reading keys and values, or by FLOPs
    lm_head         the output head; absent where its bytes are not known (it is in `weights` then)
    operators       the forward passes above their roofline: kernels that miss the ceilings, small
                    operators, their launch
    sampling        from logits to tokens; absent on a GPU, whose work is waited for there
    drafting, scheduling, update    stages of the engine's steps
    client          requests were due, and the client had sent none
    idle            no request was due
    unattributed    the rest, such as handing tokens to the client between two steps

    The parts of the forward pass are its roofline, which the measured time contains; all others
    were measured. `in_flight_s` and `waiting_s` are request-seconds: from sent to the end, and
    those in which no step had the request. Requests wait while others run, so that this is no part
    of the wall time.
    """

    wall_s: float
    parts: tuple[TimePart, ...]
    num_output_tokens: int
    num_steps: float
    prompt_operators_s: float  # of `operators`: in steps that compute prompts
    matmul_tokens: float | None  # of the steps in which most of `matmul` was; None: there is none
    linear_bytes: float  # of weights that a step reads, without the lm_head if that is known
    lm_head_bytes: float | None  # of its weights
    kv_bytes: float  # that all steps see
    in_flight_s: float
    waiting_s: float

    def seconds(self, *names: PartName) -> float:
        """The seconds of these parts together; absent ones have none."""
        return sum(part.seconds for part in self.parts if part.name in names)

    def share(self, *names: PartName) -> float:
        """Their share of the wall time."""
        return self.seconds(*names) / self.wall_s


@dataclass(frozen=True, slots=True)
class ProfiledPart:
    """What one kind of call takes of a step: `seconds` is the median over steps, of all its calls.

    ideal_s: the sum over its calls of the longer of bytes / read bandwidth and FLOPs / GEMM peak.
    """

    name: str  # "qkv", "attention", "sampler"
    seconds: float
    num_calls: float = 0  # in a step
    kernel: str | None = None  # of linear layers
    num_bytes: float | None = None  # that the calls of a step must move
    num_flops: float | None = None
    ideal_s: float | None = None


@dataclass(frozen=True, slots=True)
class StepProfile:
    """A step of the engine, part by part. Times are medians over `num_steps` steps.

    The parts sum to `profiled_s`, the step with the timers in place; `step_s` is the same step
    without them, so that the difference is what the timers cost.
    """

    kind: Literal["decode", "prefill"]
    num_requests: int
    num_tokens: int
    context: int  # tokens that a request sees in the step, itself among them; mean
    num_steps: int
    step_s: float
    profiled_s: float
    parts: tuple[ProfiledPart, ...]


def to_counters(num_tokens: int, num_requests: int, group: StepGroup) -> dict[str, float]:
    """A group as counters, under names that `step_groups` reads."""
    values: dict[str, float | None] = asdict(group)
    prefix = f"steps_{num_tokens}x{num_requests}_"
    return {prefix + name: value for name, value in values.items() if value is not None}


def step_groups(counters: Mapping[str, float]) -> tuple[StepGroup, ...]:
    """The groups in a run's `step_stats`, by size; those without a step are left out."""
    found: dict[tuple[int, int], dict[str, float]] = {}
    for name, value in counters.items():
        match = _COUNTER.fullmatch(name)
        if match is not None:
            found.setdefault((int(match[1]), int(match[2])), {})[match[3]] = value
    return tuple(_groups(found))


def _groups(found: Mapping[tuple[int, int], Mapping[str, float]]) -> Iterator[StepGroup]:
    names = [field.name for field in fields(StepGroup) if field.name != "lm_head_bytes"]
    for _, values in sorted(found.items()):
        if values.get("num_steps", 0) > 0 and all(name in values for name in names):
            known = {name: values[name] for name in names}
            yield StepGroup(**known, lm_head_bytes=values.get("lm_head_bytes"))
