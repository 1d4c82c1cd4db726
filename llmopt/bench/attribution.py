"""Where every millisecond of a cell's runs went, from what its result file has.

Knows nothing about backends or clocks. The laws: everything can be computed again from the file;
the parts of the wall time are never negative and sum to it; a backend that does not count its steps
has no attribution. The roofline (Williams et al., 2009) is that of the single step: of the bytes
and the FLOPs of its linear layers, its attention and its lm_head, the slower ones count.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import get_args

from llmopt.bench.timeline import last_seen_s
from llmopt.results.attribution import Attribution, PartName, StepGroup, TimePart, step_groups
from llmopt.results.schema import Ceilings, CellResult, CostModel, RunRecord

PARTS: tuple[PartName, ...] = get_args(PartName)
_STAGES: Mapping[str, PartName] = {
    "draft_s": "drafting",
    "schedule_s": "scheduling",
    "update_s": "update",
}


def attribute_cell(cell: CellResult) -> Attribution | None:
    """The attribution of all runs of a cell together; None where it cannot be known."""
    if cell.cost is None or cell.ceilings is None or cell.model is None:
        return None
    dtype = cell.model.compute_dtype
    found = [attribute_run(run, cell.cost, cell.ceilings, dtype) for run in cell.runs]
    known = [one for one in found if one is not None]
    return _together(known) if known and len(known) == len(found) else None


def attribute_run(
    run: RunRecord, cost: CostModel, ceilings: Ceilings, compute_dtype: str
) -> Attribution | None:
    """The attribution of one run; None if its backend did not count its steps.

    compute_dtype: of the GEMM ceiling; without a measured one, bytes alone bound the layers.
    """
    groups = step_groups(run.step_stats)
    stages = {name: run.step_stats.get(key) for key, name in _STAGES.items()}
    if not groups or run.duration_s <= 0 or None in stages.values():
        return None
    machine = _Machine(
        ceilings.read_bytes_per_s,
        ceilings.gemm_flops.get(compute_dtype),
        is_asynchronous=ceilings.device.startswith("cuda"),
    )
    head_bytes = _head_bytes(groups)
    linear_bytes = cost.weight_bytes - (head_bytes or 0.0)
    seconds, ideals = _forward_parts(groups, cost, linear_bytes, machine)
    with_prompts = [group for group in groups if group.num_rows < group.num_tokens]
    of_prompts = _forward_parts(with_prompts, cost, linear_bytes, machine)[0]["operators"]
    prompt_share = of_prompts / seconds["operators"] if seconds["operators"] else 0.0
    if not machine.is_asynchronous:
        seconds["sampling"] = sum(group.sample_s for group in groups)
    seconds |= {name: value for name, value in stages.items() if value is not None}
    seconds["idle"], seconds["client"] = _gaps(run)
    seconds = _fit(seconds, run.duration_s)
    return Attribution(
        wall_s=run.duration_s,
        parts=_parts(seconds, ideals),
        num_output_tokens=sum(request.num_output_tokens for request in run.requests),
        num_steps=sum(group.num_steps for group in groups),
        prompt_operators_s=prompt_share * seconds["operators"],
        matmul_tokens=_matmul_tokens(groups, cost, linear_bytes, machine),
        linear_bytes=linear_bytes,
        lm_head_bytes=head_bytes,
        kv_bytes=sum(group.kv_bytes for group in groups),
        in_flight_s=sum(last_seen_s(r, run) - r.sent_s for r in run.requests),
        waiting_s=_waiting_s(run, groups),
    )


@dataclass(frozen=True, slots=True)
class _Machine:
    bytes_per_s: float
    flops_per_s: float | None
    is_asynchronous: bool  # work of the forward pass is waited for when tokens are sampled

    def bound(self, num_bytes: float, num_flops: float) -> tuple[float, bool]:
        """Seconds that both need at least, and whether the bytes are what takes them."""
        of_bytes = num_bytes / self.bytes_per_s
        of_flops = 0.0 if self.flops_per_s is None else num_flops / self.flops_per_s
        return max(of_bytes, of_flops), of_bytes >= of_flops


def _forward_parts(
    groups: Sequence[StepGroup], cost: CostModel, linear_bytes: float, machine: _Machine
) -> tuple[dict[PartName, float], dict[PartName, float]]:
    """The measured seconds of the forward passes by part, and the ideal ones.

    What is measured above a group's roofline are its operators. Where it is below, because a
    processor's cache is faster than the ceiling, the parts share what was measured.
    """
    seconds: dict[PartName, float] = {"operators": 0.0}
    ideals: dict[PartName, float] = {}
    for group in groups:
        roofline = _roofline(group, cost, linear_bytes, machine)
        ideal_s = sum(roofline.values())
        measured_s = group.forward_s + (group.sample_s if machine.is_asynchronous else 0.0)
        scale = min(1.0, measured_s / ideal_s) if ideal_s else 1.0
        for name, value in roofline.items():
            seconds[name] = seconds.get(name, 0.0) + scale * value
            ideals[name] = ideals.get(name, 0.0) + value
        seconds["operators"] += max(0.0, measured_s - ideal_s)
    return seconds, ideals


def _roofline(
    group: StepGroup, cost: CostModel, linear_bytes: float, machine: _Machine
) -> dict[PartName, float]:
    """The least seconds of a group's steps, by what they are needed for."""
    linear_s, by_bytes = machine.bound(
        group.num_steps * linear_bytes, group.num_tokens * cost.flops_per_token_linear
    )
    per_pair = cost.flops_attention_per_token_per_context + sum(
        layers.flops_attention_per_token_per_context for layers in cost.windowed_layers
    )
    attention_s, by_kv = machine.bound(group.kv_bytes, group.num_attended * per_pair)
    parts: dict[PartName, float] = {
        "weights" if by_bytes else "matmul": linear_s,
        "kv" if by_kv else "attention": attention_s,
    }
    if group.lm_head_bytes is not None:
        head_flops = group.num_rows * cost.flops_lm_head
        parts["lm_head"] = machine.bound(group.lm_head_bytes, head_flops)[0]
    return parts


def _matmul_tokens(
    groups: Sequence[StepGroup], cost: CostModel, linear_bytes: float, machine: _Machine
) -> float | None:
    """Tokens of a step of the group that is bound by FLOPs for longest."""
    rooflines = [(_roofline(group, cost, linear_bytes, machine), group) for group in groups]
    bound = [(parts["matmul"], group) for parts, group in rooflines if "matmul" in parts]
    if not bound:
        return None
    _, longest = max(bound, key=lambda pair: pair[0])
    return longest.num_tokens / longest.num_steps


def _gaps(run: RunRecord) -> tuple[float, float]:
    """Seconds in which no request was due, and in which some were and none was in flight."""
    ends = [(request, last_seen_s(request, run)) for request in run.requests]
    due_s = _covered((r.scheduled_s, end) for r, end in ends)
    in_flight_s = _covered((r.sent_s, end) for r, end in ends)
    return max(0.0, run.duration_s - due_s), max(0.0, due_s - in_flight_s)


def _covered(spans: Iterable[tuple[float, float]]) -> float:
    """The length of the union of spans."""
    total, reached = 0.0, 0.0
    for start, end in sorted(spans):
        total += max(0.0, end - max(start, reached))
        reached = max(reached, end)
    return total


def _fit(seconds: Mapping[PartName, float], wall_s: float) -> dict[PartName, float]:
    """The parts with the rest of the wall time; scaled to it where two clocks overlap."""
    total = sum(seconds.values())
    scale = min(1.0, wall_s / total) if total else 1.0
    fitted: dict[PartName, float] = {name: scale * value for name, value in seconds.items()}
    fitted["unattributed"] = max(0.0, wall_s - sum(fitted.values()))
    return fitted


def _waiting_s(run: RunRecord, groups: Sequence[StepGroup]) -> float:
    """Request-seconds in flight in which no step had the request.

    A request of a step is served while the model runs, and in a step's share of the other stages.
    """
    stages_s = sum(run.step_stats[key] for key in _STAGES)
    num_steps = sum(group.num_steps for group in groups)
    served_s = sum(
        group.num_requests
        * ((group.forward_s + group.sample_s) / group.num_steps + stages_s / num_steps)
        for group in groups
    )
    in_flight_s = sum(last_seen_s(r, run) - r.sent_s for r in run.requests)
    return max(0.0, in_flight_s - served_s)


def _head_bytes(groups: Sequence[StepGroup]) -> float | None:
    """Of the lm_head's weights; None if the groups do not say, or none of their steps read them."""
    known = [group.lm_head_bytes for group in groups if group.lm_head_bytes is not None]
    num_steps = sum(group.num_head_steps for group in groups)
    return sum(known) / num_steps if len(known) == len(groups) and num_steps else None


def _parts(
    seconds: Mapping[PartName, float], ideals: Mapping[PartName, float]
) -> tuple[TimePart, ...]:
    return tuple(
        TimePart(name, seconds[name], ideals.get(name)) for name in PARTS if name in seconds
    )


def _together(runs: Sequence[Attribution]) -> Attribution:
    """The sums over runs; a part that some run lacks is what the others have of it."""
    seconds: dict[PartName, float] = {}
    ideals: dict[PartName, float] = {}
    for part in (part for run in runs for part in run.parts):
        seconds[part.name] = seconds.get(part.name, 0.0) + part.seconds
        if part.ideal_s is not None:
            ideals[part.name] = ideals.get(part.name, 0.0) + part.ideal_s
    return Attribution(
        wall_s=sum(run.wall_s for run in runs),
        parts=_parts(seconds, ideals),
        num_output_tokens=sum(run.num_output_tokens for run in runs),
        num_steps=sum(run.num_steps for run in runs),
        prompt_operators_s=sum(run.prompt_operators_s for run in runs),
        matmul_tokens=next((r.matmul_tokens for r in runs if r.matmul_tokens is not None), None),
        linear_bytes=runs[0].linear_bytes,
        lm_head_bytes=runs[0].lm_head_bytes,
        kv_bytes=sum(run.kv_bytes for run in runs),
        in_flight_s=sum(run.in_flight_s for run in runs),
        waiting_s=sum(run.waiting_s for run in runs),
    )
