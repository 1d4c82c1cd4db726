"""A recipe's load made definite: its files read, its number of requests known, its record written.

Knows nothing about tokens of a model. The law: everything that decides the requests is in the
record, files by name and hash.
"""

import hashlib
from dataclasses import dataclass, replace
from pathlib import Path

from llmopt.bench.arrivals import ramp_duration_s
from llmopt.bench.slo import parse_slo
from llmopt.bench.workload_lengths import Sizes, SizeSource, spec_of
from llmopt.bench.workload_prompts import read_prompts
from llmopt.bench.workload_trace import TracedRequest, read_trace
from llmopt.errors import UsageError
from llmopt.recipe.loads import Lengths, Load
from llmopt.results.schema import LengthSpec, LoadSpec, WorkloadSpec


@dataclass(frozen=True, slots=True)
class LoadPlan:
    """A load, what a result file says of it, and where its sizes and times come from."""

    load: Load
    spec: LoadSpec
    sizes: SizeSource | None  # None: of a trace's own lengths
    trace: tuple[TracedRequest, ...] = ()
    traced_sizes: tuple[Sizes, ...] = ()
    variant: int = 0  # each has other prompts, of the same lengths and at the same times

    def at_rate(self, rate: float, variant: int = 0) -> "LoadPlan":
        """The same load at another rate, with the prompts of a variant."""
        return replace(self, spec=replace(self.spec, rate=rate), variant=variant)

    @property
    def max_request_tokens(self) -> int:
        """The most that a request may have, prompt and output, whatever the seed."""
        workload = self.spec.workload
        if workload is None:
            return self.spec.prompt_tokens + self.spec.output_tokens
        return workload.turns * (workload.prompt.high + workload.output.high)


def open_load(load: Load, warmup_requests: int) -> LoadPlan:
    """Read the files of a load. Raises UsageError, or ResultError for a trace of ours."""
    trace = _trace(load)
    sizes, traced = _sizes(load, trace)
    if traced:
        name = Path(load.trace or "").name
        prompt = spec_of([size.prompt_tokens for size in traced], name)
        output = spec_of([size.output_tokens for size in traced], name)
    else:
        assert sizes is not None, "sizes that are not traced are drawn"
        prompt, output = sizes.specs()
    if load.workload.prompts is not None:
        output = _outputs_of_prompts(load.workload.prompts, load.output_tokens)
    number = len(trace) or _num_requests(load)
    duration_s = load.duration_s
    if load.kind == "ramp":
        duration_s = ramp_duration_s(number, load.start_rate or 0.0, load.rate or 0.0)
    spec = LoadSpec(
        concurrency=load.concurrency,
        num_requests=number,
        prompt_tokens=round(prompt.mean),
        output_tokens=round(output.mean),
        warmup_requests=warmup_requests,
        kind=load.kind,
        rate=load.rate,
        start_rate=load.start_rate,
        num_steps=load.num_steps,
        burstiness=load.burstiness,
        duration_s=duration_s,
        time_scale=load.time_scale if load.kind == "trace" else None,
        workload=_workload(load, prompt, output),
        slo=() if load.slo is None else parse_slo(load.slo),
    )
    return LoadPlan(load, spec, sizes, trace, traced)


def _num_requests(load: Load) -> int:
    if load.num_requests is not None:
        return load.num_requests
    assert load.duration_s is not None, "a load says how many requests it has, or how long it is"
    assert load.rate is not None, "a load of some duration has a rate"
    start_rate = load.rate if load.start_rate is None else load.start_rate
    return max(1, round((start_rate + load.rate) / 2 * load.duration_s))


def _trace(load: Load) -> tuple[TracedRequest, ...]:
    """The rows that are replayed: the first of them, by number or by time."""
    if load.trace is None:
        return ()
    rows = read_trace(load.trace)
    if load.duration_s is not None:
        rows = [row for row in rows if row.at_s * load.time_scale <= load.duration_s]
    if load.num_requests is not None and len(rows) < load.num_requests:
        raise UsageError(
            f"the trace {load.trace} has {len(rows)} requests, not {load.num_requests}",
            "Ask for fewer.",
        )
    return tuple(rows[: load.num_requests])


def _sizes(
    load: Load, trace: tuple[TracedRequest, ...]
) -> tuple[SizeSource | None, tuple[Sizes, ...]]:
    """Where the sizes are drawn from, and those that a trace decides."""
    if not trace:
        assert load.prompt_tokens is not None, "a load without a trace has prompt lengths"
        # prompts of a file have outputs of their own, or the load's
        output = 1 if load.output_tokens is None else load.output_tokens
        return SizeSource.open(load.prompt_tokens, output), ()
    return None, tuple(
        Sizes(
            _kept(row.prompt_tokens, load.prompt_tokens),
            _kept(row.output_tokens, load.output_tokens),
        )
        for row in trace
    )


def _outputs_of_prompts(file: str, default: Lengths | int | None) -> LengthSpec:
    """How long the answers to a file of prompts are, where the file or the load says so."""
    fallback = default if isinstance(default, int) else 1
    prompts = read_prompts(file, lambda _text: ())
    return spec_of([prompt.output_tokens or fallback for prompt in prompts], Path(file).name)


def _kept(traced: int, lengths: Lengths | int | None) -> int:
    """A length of the trace, within the bounds of the load."""
    if lengths is None:
        return traced
    if isinstance(lengths, int):
        return lengths
    return min(max(traced, lengths.low), lengths.high)


def _workload(load: Load, prompt: LengthSpec, output: LengthSpec) -> WorkloadSpec | None:
    """What a result file says of the requests; None if they are as plain as they can be."""
    work = load.workload
    file = load.trace or work.prompts
    source = "random tokens" if work.source == "random" else "text"
    spec = WorkloadSpec(
        prompt=prompt,
        output=output,
        source=source if file is None else Path(file).name,
        source_sha256=None if file is None else _sha256(file),
        prefix_groups=work.prefix_groups,
        prefix_tokens=work.prefix_tokens,
        turns=work.turns,
        unique_prompts=work.distinct_prompts is None and work.prompts is None,
    )
    return None if spec == WorkloadSpec(prompt, output) and _is_fixed(load) else spec


def _is_fixed(load: Load) -> bool:
    return isinstance(load.prompt_tokens, int) and isinstance(load.output_tokens, int)


def _sha256(path: str) -> str:
    try:
        return hashlib.sha256(Path(path).read_bytes()).hexdigest()
    except OSError as error:
        raise UsageError(
            f"the file {path} cannot be read ({error.strerror})", "Check the path."
        ) from error
