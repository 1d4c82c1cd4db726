"""A step of the engine, part by part: what each kind of call takes, and what it needs at least.

Knows nothing about sweeps or files. The laws: a profiled step is never a measured one, and the
model is as before afterwards; steps with and without the timers take turns, so that what the timers
cost is seen; nothing is speculated, and no prefix is found in a cache.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import median
from typing import Literal

import torch

from llmopt.bench.call_timers import CallCounter, CallTimer, CallWork, replaced
from llmopt.bench.engine_settings import engine_config
from llmopt.bench.module_calls import Call, calls_of
from llmopt.bench.native_profile import native_seconds, without_native
from llmopt.bench.workload_spec import LoadPlan
from llmopt.engine.config import EngineConfig
from llmopt.engine.engine import Engine
from llmopt.engine.sampling_params import SamplingParams
from llmopt.models.decoder import Decoder
from llmopt.recipe.engine import EngineSettings
from llmopt.results.attribution import ProfiledPart, StepProfile, step_groups
from llmopt.results.schema import Ceilings, LoadSpec, RunRecord

NUM_STEPS = 20  # of either kind, with and without the timers
MIN_STEPS = 5
BUDGET_S = 60.0  # after so long the steps that there are must do
_NUM_WARMUP_STEPS = 3
_PRIME = 7919  # tokens of a prompt are its multiples: which they are does not matter
_STAGES = {"schedule_s": "scheduler", "update_s": "recording"}
_OTHER = "other operators, Python"  # of the forward pass
_REST = "rest of the step"

Kind = Literal["decode", "prefill"]


@dataclass(frozen=True, slots=True)
class StepShape:
    """What is profiled: a decode step of `num_requests`, which have about `context` tokens, and a
    prefill chunk of `chunk_tokens` of each of `num_chunks` requests.
    """

    num_requests: int
    context: int
    num_chunks: int
    chunk_tokens: int


def profile_load(
    model: Decoder,
    plan: LoadPlan,
    settings: EngineSettings | None,
    ceilings: Ceilings,
    runs: Sequence[RunRecord],
    *,
    num_steps: int = NUM_STEPS,
) -> tuple[StepProfile, StepProfile]:
    """The decode step and the prefill chunk that are usual under a load, whose runs are done.

    Raises `EngineError` when there is no memory for the cache.
    """
    config = engine_config(plan, settings)
    return profile_steps(
        model,
        config,
        usual_shape(plan.spec, config, runs, model.config.max_model_len, num_steps),
        ceilings,
        num_steps=num_steps,
    )


def usual_shape(
    load: LoadSpec,
    config: EngineConfig,
    runs: Sequence[RunRecord],
    max_model_len: int,
    num_steps: int = NUM_STEPS,
) -> StepShape:
    """The concurrency of a closed loop, the mean batch of an open one; the middle of an output."""
    batch = float(load.concurrency)
    if load.kind != "closed":
        groups = [group for run in runs for group in step_groups(run.step_stats)]
        total = sum(group.num_steps for group in groups)
        batch = sum(group.num_requests for group in groups) / total if total else 1.0
    num_requests = max(1, min(round(batch), config.max_num_seqs))
    longest = max_model_len - _num_outputs(num_requests, max_model_len, config, num_steps)
    chunk_tokens = max(1, min(load.prompt_tokens, config.max_chunk, longest))
    return StepShape(
        num_requests,
        max(1, min(load.prompt_tokens + load.output_tokens // 2, longest)),
        max(1, min(num_requests, config.max_num_batched_tokens // chunk_tokens)),
        chunk_tokens,
    )


def profile_steps(
    model: Decoder,
    config: EngineConfig,
    shape: StepShape,
    ceilings: Ceilings,
    *,
    num_steps: int = NUM_STEPS,
    budget_s: float = BUDGET_S,
) -> tuple[StepProfile, StepProfile]:
    """The profiles of a decode step and of a prefill chunk. Raises as `profile_load`."""
    prompt_tokens = max(1, shape.context - _num_decodes(num_steps) // 2)
    num_requests = max(shape.num_requests, shape.num_chunks)
    num_outputs = _num_outputs(num_requests, prompt_tokens, config, num_steps)
    length = max(prompt_tokens, shape.chunk_tokens) + num_outputs
    engine = Engine(
        model,
        replace(
            config,
            max_num_seqs=num_requests,
            max_model_len=length,
            num_blocks=num_requests * -(-length // config.block_size),
            kv_memory_bytes=None,
            prefix_caching=False,
            speculation=None,
            cuda_graphs=False,  # a recorded step is one call, which has no parts
            async_scheduling="off",
        ),
    )
    profiler = _Profiler(model, engine, ceilings, num_steps, budget_s)
    prefill = profiler.prefill(shape.num_chunks, shape.chunk_tokens)
    return profiler.decode(shape.num_requests, prompt_tokens, num_outputs), prefill


@dataclass(slots=True)
class _Profiler:
    model: Decoder
    engine: Engine
    ceilings: Ceilings
    num_steps: int
    budget_s: float
    num_added: int = 0

    def prefill(self, num_requests: int, num_tokens: int) -> StepProfile:
        """Every step computes the prompts of new requests, which end with it."""

        def prepare() -> None:
            self._add(num_requests, num_tokens, max_tokens=1)

        steps = self._measure(prepare)
        return self._profile("prefill", num_requests, num_requests * num_tokens, num_tokens, steps)

    def decode(self, num_requests: int, prompt_tokens: int, num_outputs: int) -> StepProfile:
        """The same requests take one token more with every step."""
        self._add(num_requests, prompt_tokens, max_tokens=num_outputs)
        requests = [*self.engine.scheduler.waiting]
        while any(request.num_output_tokens == 0 for request in requests):
            self.engine.step()
        steps = self._measure(lambda: None)
        assert len(self.engine.scheduler.running) == num_requests, "no request ends meanwhile"
        context = sum(request.num_tokens for request in requests) // num_requests
        context -= _num_decodes(len(steps.plain_s)) // 2
        return self._profile("decode", num_requests, num_requests, context, steps)

    def _add(self, num_requests: int, num_tokens: int, max_tokens: int) -> None:
        vocab_size = self.model.config.vocab_size
        for _ in range(num_requests):
            self.num_added += 1
            tokens = [(self.num_added + i * _PRIME) % vocab_size for i in range(num_tokens)]
            params = SamplingParams(max_tokens=max_tokens, temperature=0.0, ignore_eos=True)
            self.engine.add_request(f"profile-{self.num_added}", tokens, params)

    def _measure(self, prepare: Callable[[], None]) -> "_Steps":
        """Steps with and without timers, in turns; `prepare` gives each its requests."""
        calls = calls_of(self.model)
        for _ in range(_NUM_WARMUP_STEPS):
            prepare()
            self.engine.step()
        counter = CallCounter(self._bound)
        prepare()
        with without_native(self.model), replaced(calls, counter.counted):
            self.engine.step()
        steps = _Steps(counter.work, [], [])
        end = time.perf_counter() + self.budget_s
        for done in range(self.num_steps):
            if done >= MIN_STEPS and time.perf_counter() > end:
                break
            prepare()
            steps.plain_s.append(self._timed_step())
            prepare()
            steps.timed.append(self._profiled_step(calls))
        return steps

    def _profiled_step(self, calls: Sequence[Call]) -> dict[str, float]:
        """Seconds by part, and of the whole step under the name ""."""
        timer = CallTimer(self.model.device)
        before = replace(self.engine.times)
        with replaced(calls, timer.timed), native_seconds(self.model) as seconds:
            whole_s = self._timed_step()
        for name, spent_s in timer.finish().items():
            seconds[name] = seconds.get(name, 0.0) + spent_s
        in_parts_s = sum(seconds.values())
        after = self.engine.times
        for key, name in _STAGES.items():
            seconds[name] = getattr(after, key) - getattr(before, key)
        if self.model.device.type != "cuda":  # there the sampler waits for the forward pass
            forward_s = after.forward_s - before.forward_s
            seconds[_OTHER] = max(0.0, forward_s - in_parts_s)
            seconds["sampler"] = after.sample_s - before.sample_s
        return seconds | {"": whole_s}

    def _timed_step(self) -> float:
        started = time.perf_counter()
        self.engine.step()
        if self.model.device.type == "cuda":
            torch.cuda.synchronize(self.model.device)
        return time.perf_counter() - started

    def _bound(self, num_bytes: float, num_flops: float) -> float:
        peak = self.ceilings.gemm_flops.get(str(self.model.dtype).removeprefix("torch."))
        of_flops = 0.0 if peak is None else num_flops / peak
        return max(num_bytes / self.ceilings.read_bytes_per_s, of_flops)

    def _profile(
        self, kind: Kind, num_requests: int, num_tokens: int, context: int, steps: "_Steps"
    ) -> StepProfile:
        parts = steps.parts()
        profiled_s = max(median(step[""] for step in steps.timed), sum(p.seconds for p in parts))
        rest = ProfiledPart(_REST, profiled_s - sum(part.seconds for part in parts))
        return StepProfile(
            kind=kind,
            num_requests=num_requests,
            num_tokens=num_tokens,
            context=context,
            num_steps=len(steps.timed),
            step_s=median(steps.plain_s),
            profiled_s=profiled_s,
            parts=(*parts, rest),
        )


@dataclass(frozen=True, slots=True)
class _Steps:
    """What was seen of the steps of one kind."""

    work: Mapping[str, CallWork]
    plain_s: list[float]
    timed: list[dict[str, float]]  # seconds by part; "" is the whole

    def parts(self) -> list[ProfiledPart]:
        """Those that took any time, the largest first."""
        names = {name for step in self.timed for name in step if name}
        medians = {name: median(step.get(name, 0.0) for step in self.timed) for name in names}
        ordered = sorted(medians.items(), key=lambda item: (-item[1], item[0]))
        return [self._part(name, seconds) for name, seconds in ordered if seconds > 0]

    def _part(self, name: str, seconds: float) -> ProfiledPart:
        work = self.work.get(name)
        if work is None:
            return ProfiledPart(name, seconds)
        return ProfiledPart(
            name,
            seconds,
            num_calls=work.num_calls,
            kernel=" + ".join(work.kernels) or None,
            num_bytes=work.num_bytes,
            num_flops=work.num_flops or None,
            ideal_s=work.ideal_s,
        )


def _num_decodes(num_steps: int) -> int:
    """Steps while a decode step is profiled: a warm-up, one that is counted, those with timers and
    those without.
    """
    return _NUM_WARMUP_STEPS + 1 + 2 * num_steps


def _num_outputs(
    num_requests: int, prompt_tokens: int, config: EngineConfig, num_steps: int
) -> int:
    """Tokens that no request reaches while decode steps are profiled, nor before, while prompts of
    others are computed.
    """
    for_prompts = max(1, config.max_num_batched_tokens - num_requests)
    return _num_decodes(num_steps) + -(-num_requests * prompt_tokens // for_prompts) + 2
