"""How much is drafted, driven by a proposer and a clock made by hand."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import pytest

from llmopt.engine.request import Request, RequestStatus, StepOutput
from llmopt.engine.scheduler import ScheduledRequest, SchedulerOutput
from llmopt.engine.speculation.speculator import Speculator
from llmopt.layers.rejection_sampler import Draft


@dataclass
class World:
    """A proposer that guesses right with a given pattern, and what everything costs."""

    base_s: float = 1.0
    token_s: float = 0.0
    draft_s: float = 0.0
    now: float = 0.0
    limits: list[int] = field(default_factory=list)
    forgotten: list[str] = field(default_factory=list)

    def clock(self) -> float:
        return self.now

    def propose(self, requests: Sequence[Request], limits: Sequence[int]) -> list[Draft]:
        self.limits = list(limits)
        self.now += self.draft_s * max(limits)
        return [Draft((7,) * limit) for limit in limits]

    def forget(self, request_id: str) -> None:
        self.forgotten.append(request_id)


def make(world: World, *, adaptive: bool = True, k: int = 5) -> Speculator:
    return Speculator(world, max_draft_tokens=k, adaptive=adaptive, clock=world.clock)


def running(name: str, num_new: int = 1, **more: object) -> Request:
    from llmopt.engine.sampling_params import SamplingParams

    request = Request(name, [5] * 10, 10, SamplingParams(), 10_000, seed=0)
    request.status = RequestStatus.RUNNING
    request.num_computed_tokens = 10 - num_new
    for key, value in more.items():
        setattr(request, key, value)
    return request


def step(
    speculator: Speculator, world: World, requests: list[Request], taken: Callable[[str, int], bool]
) -> list[int]:
    """One step; returns the lengths of the drafts."""
    drafts = speculator.propose(requests, 1000)
    items, sampled = [], []
    for request in requests:
        draft = drafts.get(request.request_id, Draft())
        items.append(ScheduledRequest(request, 9, 1 + len(draft), True, draft.token_ids))
        num_taken = 0
        while num_taken < len(draft) and taken(request.request_id, num_taken):
            num_taken += 1
        sampled.append([7] * (num_taken + 1))
    output = SchedulerOutput(tuple(items))
    world.now += world.base_s + world.token_s * output.num_scheduled_tokens
    speculator.record(output, sampled)
    return [len(item.draft_token_ids) for item in items]


def settled(world: World, taken: Callable[[str, int], bool], names: str = "a") -> list[int]:
    """The usual lengths after many steps."""
    speculator = make(world)
    requests = [running(name) for name in names]
    history = [step(speculator, world, requests, taken) for _ in range(300)][-99:]
    return [sorted(lengths)[49] for lengths in zip(*history, strict=True)]


def test_right_and_cheap_guesses_are_long() -> None:
    assert settled(World(), lambda name, i: True) == [5]
    assert settled(World(token_s=0.05, draft_s=0.3), lambda name, i: True) == [5]


def test_wrong_or_costly_guesses_are_not_made() -> None:
    assert settled(World(token_s=0.2), lambda name, i: False) == [0]
    assert settled(World(draft_s=1.5), lambda name, i: True) == [0]


def test_guesses_end_where_they_go_wrong() -> None:
    assert settled(World(token_s=0.1), lambda name, i: i < 2) == [2]


def test_each_request_has_its_own_length() -> None:
    assert settled(World(token_s=0.2), lambda name, i: name == "b", "ab") == [0, 5]


def test_what_did_not_pay_is_tried_again() -> None:
    world = World(token_s=0.1)
    speculator, request = make(world), running("a")
    wrong = [step(speculator, world, [request], lambda name, i: False)[0] for _ in range(200)]
    assert sum(n == 0 for n in wrong[-100:]) >= 60
    later = [step(speculator, world, [request], lambda name, i: True)[0] for _ in range(150)]
    assert sorted(later[-50:])[25] == 5


def test_without_adapting_the_length_is_the_most_that_may_be() -> None:
    world = World(draft_s=10.0)
    speculator = make(world, adaptive=False)
    ending = running("ending", max_tokens=3)
    ended = running("last", max_tokens=1)
    prompt = running("prompt", num_new=4)
    requests = [running("a"), ending, ended, prompt]
    assert {k: len(d) for k, d in speculator.propose(requests, 1000).items()} == {
        "a": 5,
        "ending": 2,
    }
    assert {k: len(d) for k, d in speculator.propose(requests, 10).items()} == {"a": 5, "ending": 1}
    assert {k: len(d) for k, d in speculator.propose(requests, 7).items()} == {"a": 3}
    assert speculator.propose(requests, 4) == {}


def test_times_are_those_of_decodes_alone() -> None:
    world = World(base_s=2.0, token_s=0.5, draft_s=0.25)
    speculator, request = make(world), running("a")
    for _ in range(20):
        step(speculator, world, [request], lambda name, i: True)
    assert speculator.times.fit() == pytest.approx((2.0, 0.5))
    assert speculator.times.draft_s == pytest.approx(0.25)
    length = round(speculator.stats.mean_draft_tokens)
    assert speculator.break_even() == pytest.approx(
        _break_even(length, (2.0 + 0.5 * (length + 1) + 0.25 * length) / 2.5)
    )
    before = speculator.stats.model_s
    speculator.propose([request], 100)
    world.now += 1000
    prompt = ScheduledRequest(running("p", num_new=4), 6, 4, True)
    decode = ScheduledRequest(request, 9, 1, True)
    speculator.record(SchedulerOutput((decode, prompt)), [[7], [7]])
    assert speculator.stats.model_s == before
    assert speculator.times.fit() == pytest.approx((2.0, 0.5))


def _break_even(k: int, cost: float) -> float:
    low, high = 0.0, 1.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if sum(middle**i for i in range(k + 1)) < cost else (low, middle)
    return low


def test_the_ended_are_forgotten() -> None:
    world = World()
    speculator, requests = make(world), [running("a"), running("b")]
    for _ in range(3):
        step(speculator, world, requests, lambda name, i: True)
    speculator.forget_finished([StepOutput("a", (7,), "stop"), StepOutput("b", (7,))])
    assert world.forgotten == ["a"]
    assert set(speculator._acceptance) == {"b"}
    assert speculator.stats.num_decodes == 6
