"""Looking a step ahead gives every request the tokens that it gets without, on any device."""

from collections import deque
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from hash_model import VOCAB_SIZE, HashModel
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule

from llmopt.engine.batch import build_batch
from llmopt.engine.engine import Engine, EngineConfig
from llmopt.engine.lookahead import needs_host_tokens
from llmopt.engine.model_runner import ModelRunner, StepResult
from llmopt.engine.pending_step import PendingStep, late_tokens
from llmopt.engine.request import PENDING_TOKEN, StepOutput
from llmopt.engine.sampling_params import SamplingParams
from llmopt.engine.scheduler import SchedulerOutput
from llmopt.engine.token_chooser import sampling_row
from llmopt.errors import EngineError
from llmopt.layers.sampler import DeviceTokens, sample_async

TEXT = [(i * i + i // 3) % 5 + 2 for i in range(64)]  # prompts are pieces of it: prefixes meet
Tokens = list[int]


class SlowDevice:
    """Does what it was told, in order, but only when somebody waits for it."""

    def __init__(self) -> None:
        self.queue: deque[Callable[[], None]] = deque()

    def run_until(self, work: Callable[[], None] | None) -> None:
        while self.queue:
            done = self.queue.popleft()
            done()
            if done is work:
                return


class SlowReadback:
    def __init__(self, device: SlowDevice, work: Callable[[], None], tokens: DeviceTokens) -> None:
        self.device, self.work, self.tokens = device, work, tokens

    def read(self) -> Tokens:
        assert (self.tokens.table == -7).all(), "nobody ran ahead of the host"
        self.device.run_until(self.work)
        return self.tokens.read()


class SlowRunner(ModelRunner):
    """Launches without computing: the device does it when its tokens are read."""

    slow: SlowDevice

    def launch(self, output: SchedulerOutput, previous: PendingStep | None) -> PendingStep:
        late = None if previous is None else late_tokens(output, previous)
        batch = build_batch(output, self.block_size, self.model.device, self.groups)
        rows = [sampling_row(item.request) for item in batch.sampling]
        tokens = DeviceTokens(torch.full((2, len(rows)), -7), torch.float32)

        def compute() -> None:
            if late is not None:
                late.put_into(batch.input_ids)
            hidden = self.model.forward(
                batch.input_ids, batch.positions, batch.metadata, self.kv_cache
            )
            if rows:
                logits = self.model.compute_logits(hidden[batch.logits_indices])
                try:
                    tokens.table.copy_(sample_async(logits, rows).table)
                except EngineError:  # a device raises nothing: it says so where tokens are read
                    tokens.table.zero_()

        self.slow.queue.append(compute)
        readback = SlowReadback(self.slow, compute, tokens) if rows else None
        return PendingStep(output, batch.sampling, tokens if rows else None, readback, 0.0)

    def run(self, output: SchedulerOutput, drafts: Any = None) -> StepResult:
        self.slow.run_until(None)
        return super().run(output, drafts)


def make_slow(engine: Engine) -> None:
    slow = SlowDevice()
    move = engine.kv.move
    engine.runner.__class__ = SlowRunner
    engine.runner.slow = slow
    engine.kv.move = lambda output: slow.queue.append(lambda: move(output))


def generate(engine: Engine, prompts: list[Tokens], params: list[SamplingParams]) -> list[Tokens]:
    tokens: dict[str, Tokens] = {}
    for index, (prompt, one) in enumerate(zip(prompts, params, strict=True)):
        tokens |= {name: [] for name in engine.add_request(str(index), prompt, one)}
    while engine.has_unfinished():
        for out in engine.step():
            tokens[out.request_id] += out.token_ids
        engine.scheduler.check_invariants()
    assert engine.block_pool.num_used_blocks == 0
    return list(tokens.values())


MIXED = [
    SamplingParams(max_tokens=9),
    SamplingParams(max_tokens=1),
    SamplingParams(max_tokens=20, temperature=0.8, seed=3),
    SamplingParams(max_tokens=12, temperature=1.0, top_k=9, top_p=0.9, seed=4, n=2),
    SamplingParams(max_tokens=30, ignore_eos=True, stop_token_ids=(7,)),
    SamplingParams(max_tokens=7, min_tokens=6),
]


@pytest.mark.parametrize("slow", [False, True])
@pytest.mark.parametrize(
    "limits",
    [
        {},
        {"max_num_batched_tokens": 7},
        {"max_num_seqs": 2},
        {"num_blocks": 14},
        {"num_blocks": 14, "preemption": "swap"},
        {"policy": "static", "num_blocks": 40},
        {"attention_window": 6, "sink_tokens": 2},
    ],
    ids=str,
)
def test_tokens_are_those_of_the_synchronous_engine(limits: dict[str, Any], slow: bool) -> None:
    prompts = [TEXT[:n] for n in (1, 8, 9, 17, 3, 12)]
    config = EngineConfig(**{"block_size": 4, "num_blocks": 128, "max_num_seqs": 8} | limits)
    expected = generate(Engine(HashModel(), config), prompts, MIXED)
    ahead = Engine(HashModel(), replace(config, async_scheduling="on"))
    if slow:
        make_slow(ahead)
    assert generate(ahead, prompts, MIXED) == expected
    if "num_blocks" in limits and limits.get("policy") != "static":
        assert ahead.stats.num_preemptions > 0
    assert ahead.stats.num_generated_tokens == sum(map(len, expected))


def test_a_step_is_launched_before_the_tokens_of_the_one_before_are_read() -> None:
    engine = Engine(HashModel(), EngineConfig(num_blocks=32, async_scheduling="on"))
    events: list[str] = []
    launch, finish = engine.runner.launch, engine.runner.finish
    engine.runner.launch = lambda *args: events.append("launch") or launch(*args)
    engine.runner.finish = lambda *args: events.append("finish") or finish(*args)
    engine.add_request("a", [3, 4], SamplingParams(max_tokens=3, ignore_eos=True))
    assert engine.step() == []
    request = engine.scheduler.requests["a"]
    assert request.token_ids == [3, 4, PENDING_TOKEN]
    assert len(engine.step()) == len(engine.step()) == len(engine.step()) == 1
    assert events == ["launch", "launch", "finish", "launch", "finish", "finish"]
    assert not engine.has_unfinished()
    assert sum(bucket.num_steps for bucket in engine.runner.steps.buckets.values()) == 3


def test_a_token_behind_a_stop_is_computed_and_not_told() -> None:
    config = EngineConfig(num_blocks=32, block_size=2)
    plain = Engine(HashModel(), config)
    [tokens] = generate(plain, [[3, 4]], [SamplingParams(max_tokens=9, ignore_eos=True)])
    params = SamplingParams(max_tokens=9, stop_token_ids=(tokens[3],), ignore_eos=True)
    ahead = Engine(HashModel(), replace(config, async_scheduling="on"))
    [found] = generate(ahead, [[3, 4]], [params])
    assert found == tokens[: tokens.index(tokens[3]) + 1]
    assert ahead.stats.num_scheduled_tokens == 2 + len(found)


def test_a_prefix_that_was_generated_ahead_is_found_again() -> None:
    config = EngineConfig(num_blocks=32, block_size=2, async_scheduling="on")
    engine = Engine(HashModel(), config)
    [tokens] = generate(engine, [[3, 4]], [SamplingParams(max_tokens=8, ignore_eos=True)])
    again = [3, 4, *tokens, 5]
    plain = Engine(HashModel(), EngineConfig(num_blocks=32, block_size=2))
    params = [SamplingParams(max_tokens=4)]
    assert generate(engine, [again], params) == generate(plain, [again], params)
    assert engine.stats.num_prefix_hit_tokens == 8


@pytest.mark.parametrize(
    ("params", "needs"),
    [
        (SamplingParams(temperature=0.7, top_p=0.9, seed=1, min_tokens=2, stop=("x",)), False),
        (SamplingParams(logprobs=0), True),
        (SamplingParams(prompt_logprobs=0), True),
        (SamplingParams(frequency_penalty=0.5), True),
        (SamplingParams(logit_bias={3: 1.0}), True),
        (SamplingParams(n=1, best_of=2, temperature=1.0), True),
    ],
    ids=lambda value: str(value) if isinstance(value, bool) else "",
)
def test_what_needs_tokens_on_the_host(params: SamplingParams, needs: bool) -> None:
    assert needs_host_tokens(params) is needs


def test_a_request_that_needs_the_host_is_served_in_synchronous_steps_among_others() -> None:
    params = [
        SamplingParams(max_tokens=12, ignore_eos=True),
        SamplingParams(max_tokens=4, frequency_penalty=1.0, logprobs=2, ignore_eos=True),
        SamplingParams(max_tokens=14, temperature=1.0, seed=1, ignore_eos=True),
    ]
    prompts = [TEXT[:3], TEXT[:9], TEXT[:5]]
    config = EngineConfig(num_blocks=64, block_size=4)
    engine = Engine(HashModel(), replace(config, async_scheduling="on"))
    calls: list[str] = []
    run, launch = engine.runner.run, engine.runner.launch
    engine.runner.run = lambda *args: calls.append("run") or run(*args)
    engine.runner.launch = lambda *args: calls.append("launch") or launch(*args)
    assert generate(engine, prompts, params) == generate(
        Engine(HashModel(), config), prompts, params
    )
    assert calls == ["run"] * 4 + ["launch"] * 10


def test_speculation_does_not_look_ahead() -> None:
    from llmopt.engine.speculation.config import SpeculationConfig

    speculation = SpeculationConfig(proposer="ngram")
    config = EngineConfig(num_blocks=32, async_scheduling="on", speculation=speculation)
    engine = Engine(HashModel(), config)
    engine.runner.launch = None
    [tokens] = generate(engine, [TEXT[:8]], [SamplingParams(max_tokens=5, ignore_eos=True)])
    assert len(tokens) == 5


@pytest.mark.parametrize("slow", [False, True])
def test_broken_logits_end_what_is_in_flight_and_nothing_else(slow: bool) -> None:
    model = HashModel()
    engine = Engine(model, EngineConfig(num_blocks=32, async_scheduling="on"))
    if slow:  # found when tokens are read; else when they are computed
        make_slow(engine)
    compute = model.compute_logits
    engine.add_request("a", [3, 4], SamplingParams(max_tokens=9, ignore_eos=True))
    engine.step()
    model.compute_logits = lambda hidden: compute(hidden) * float("nan")
    with pytest.raises(EngineError, match="not finite"):
        engine.step()
    assert not engine.has_unfinished()
    model.compute_logits = compute
    if slow:
        engine.runner.slow.queue.clear()
    [tokens] = generate(engine, [[3, 4]], [SamplingParams(max_tokens=3, ignore_eos=True)])
    plain = Engine(HashModel(), EngineConfig(num_blocks=32))
    assert [tokens] == generate(plain, [[3, 4]], [SamplingParams(max_tokens=3, ignore_eos=True)])


def test_a_prompt_beside_broken_logits_goes_on() -> None:
    model = HashModel()
    config = EngineConfig(num_blocks=32, max_num_batched_tokens=6, async_scheduling="on")
    engine = Engine(model, config)
    make_slow(engine)
    compute, broken = model.compute_logits, [float("nan")] * 2
    model.compute_logits = lambda hidden: compute(hidden) * (broken.pop() if broken else 1)
    params = SamplingParams(max_tokens=5, ignore_eos=True)
    engine.add_request("a", [3, 4], params)
    engine.add_request("b", TEXT[:20], params)
    engine.step()
    with pytest.raises(EngineError, match="not finite"):
        engine.step()
    assert list(engine.scheduler.requests) == ["b"]
    tokens: Tokens = []
    while engine.has_unfinished():
        tokens += [token for out in engine.step() for token in out.token_ids]
    assert broken == []
    assert [tokens] == generate(
        Engine(HashModel(), replace(config, async_scheduling="off")), [TEXT[:20]], [params]
    )


def test_a_step_that_nobody_waits_for_is_not_read() -> None:
    engine = Engine(HashModel(), EngineConfig(num_blocks=32, async_scheduling="on"))
    read: list[str] = []
    finish = engine.runner.finish
    engine.runner.finish = lambda pending: (
        read.append(pending.output.scheduled[0].request.request_id) or finish(pending)
    )
    engine.add_request("a", [3, 4], SamplingParams(max_tokens=9, ignore_eos=True))
    engine.step()
    assert engine.abort("a")
    engine.add_request("b", [3, 4], SamplingParams(max_tokens=2, ignore_eos=True))
    while engine.has_unfinished():
        engine.step()
    assert read == ["b", "b"]


def test_a_model_of_layers_gives_the_same_tokens(make_engine, run, prompts) -> None:
    params = [
        SamplingParams(max_tokens=16, temperature=float(i % 2), seed=i) for i in range(len(prompts))
    ]

    def tokens(outputs: dict[str, list[StepOutput]]) -> dict[str, Tokens]:
        return {name: [t for o in outs for t in o.token_ids] for name, outs in outputs.items()}

    limits = {"max_num_batched_tokens": 24, "num_blocks": 40}
    expected = tokens(run(make_engine(**limits), prompts, params))
    assert tokens(run(make_engine(**limits, async_scheduling="on"), prompts, params)) == expected


REFERENCE = Engine(HashModel(), EngineConfig(num_blocks=200, block_size=4, prefix_caching=False))
ASKED = st.builds(
    SamplingParams,
    max_tokens=st.integers(1, 12),
    temperature=st.sampled_from([0.0, 1.0]),
    seed=st.integers(0, 3),
    min_tokens=st.integers(0, 1),
    stop_token_ids=st.sampled_from([(), (5,), tuple(range(2, VOCAB_SIZE, 5))]),
    logprobs=st.sampled_from([None, None, None, None, 0]),
    n=st.sampled_from([1, 1, 2]),
)


class LookaheadMachine(RuleBasedStateMachine):
    """Requests come, end and are aborted at any time; each gets the tokens that it gets alone."""

    @initialize(
        block_size=st.sampled_from([1, 2, 4]),
        num_tokens=st.sampled_from([36, 48, 120]),
        preemption=st.sampled_from(["recompute", "swap"]),
        policy=st.sampled_from(["fcfs", "priority", "static"]),
        max_num_seqs=st.integers(1, 5),
        budget=st.sampled_from([5, 8, 64]),
        prefix_caching=st.booleans(),
        slow=st.booleans(),
    )
    def start(self, block_size, num_tokens, budget, slow, **limits) -> None:
        config = EngineConfig(
            block_size=block_size,
            num_blocks=num_tokens // block_size,
            max_num_batched_tokens=budget,
            async_scheduling="on",
            host_memory_bytes=1 << 12,
            **limits,
        )
        self.engine = Engine(HashModel(), config)
        if slow:
            make_slow(self.engine)
        self.expected: dict[str, Tokens] = {}
        self.told: dict[str, Tokens] = {}
        self.alive: set[str] = set()
        self.count = 0

    @rule(start=st.integers(0, 3), length=st.integers(1, 20), params=ASKED)
    def add(self, start: int, length: int, params: SamplingParams) -> None:
        prompt = TEXT[start : start + length]
        name = str(self.count)
        self.count += 1
        names = self.engine.add_request(name, prompt, params)
        alone = generate(REFERENCE, [prompt], [params])
        self.expected |= dict(zip(names, alone, strict=True))
        self.told |= {one: [] for one in names}
        self.alive |= set(names)

    @precondition(lambda self: self.alive)
    @rule(data=st.data())
    def abort(self, data: st.DataObject) -> None:
        name = data.draw(st.sampled_from(sorted(self.alive)))
        assert self.engine.abort(name)
        self.alive.discard(name)

    @rule(times=st.integers(1, 4))
    def step(self, times: int) -> None:
        for _ in range(times):
            outputs = self.engine.step()
            names = [out.request_id for out in outputs]
            assert len(names) == len(set(names)), "a step tells a request once"
            for out in outputs:
                assert out.request_id in self.alive, "nobody hears of a request that ended"
                told = self.told[out.request_id]
                told += out.token_ids
                expected = self.expected[out.request_id]
                assert told == expected[: len(told)]
                assert (out.finish_reason is not None) == (len(told) == len(expected))
                if out.finish_reason is not None:
                    self.alive.discard(out.request_id)
            self.engine.scheduler.check_invariants()

    def teardown(self) -> None:
        if not hasattr(self, "engine"):
            return
        for _ in range(2000):
            if not self.engine.has_unfinished():
                break
            self.step(1)
        assert not self.alive
        assert self.engine.block_pool.num_used_blocks == 0


LookaheadMachine.TestCase.settings = settings(
    max_examples=40, stateful_step_count=25, deadline=None
)
TestLookahead = LookaheadMachine.TestCase
