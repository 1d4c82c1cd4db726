"""How the benchmark times calls and searches configurations."""

import time
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from bench import timing
from bench.ceilings import Sizes, measure_ceilings
from bench.search import search
from bench.timing import Effort, Failure, Timing, first_line, time_calls

CPU = torch.device("cpu")


def test_contenders_take_turns_and_none_is_always_behind_the_same(brief):
    order: list[str] = []
    calls = {name: (lambda name=name: order.append(name)) for name in "abc"}
    timings = time_calls(calls, CPU, replace(brief, min_rounds=3, max_rounds=3))
    assert order[:9] == [*"aaabbbccc"], "warm-ups"
    assert order[9:] == [*"abc", *"bca", *"cab"]
    assert list(timings) == [*"abc"]
    assert all(isinstance(t, Timing) and t.num_rounds == 3 for t in timings.values())


def test_every_call_is_timed_with_cold_data_and_by_itself(monkeypatch):
    events: list[str] = []
    monkeypatch.setattr(timing, "_flusher", lambda device, n: lambda: events.append("flush"))
    calls = {"slow": lambda: time.sleep(0.004), "fast": lambda: events.append("call")}
    found = time_calls(calls, CPU, Effort(0.0, 3, 3))
    assert found["slow"].best_s >= 0.004 > found["fast"].median_s
    assert found["slow"].low_s <= found["slow"].median_s <= found["slow"].high_s
    assert events == ["call"] * 3 + ["flush", "flush", "call"] + ["flush", "call", "flush"] + [
        "flush",
        "flush",
        "call",
    ]


def test_rounds_go_on_until_the_budget_is_spent():
    calls = {"call": lambda: time.sleep(0.002)}
    effort = Effort(budget_s=0.02, min_rounds=2, max_rounds=1000, flush_bytes=4)
    rounds = time_calls(calls, CPU, effort)["call"].num_rounds
    assert 2 <= rounds <= 11
    few = time_calls(calls, CPU, replace(effort, max_rounds=4, budget_s=60))["call"]
    assert few.num_rounds == 4


def test_a_contender_that_raises_is_told_and_spoils_no_other(brief):
    def broken() -> None:
        raise ValueError("no such thing\nat all")

    found = time_calls({"broken": broken, "fine": lambda: None}, CPU, brief)
    assert found["broken"] == Failure("ValueError: no such thing")
    assert isinstance(found["fine"], Timing)
    assert list(found) == ["broken", "fine"]
    assert first_line(KeyError()) == "KeyError"
    assert time_calls({}, CPU, brief) == {}


def test_ceilings_are_work_over_the_best_time(brief, monkeypatch):
    sizes = Sizes(array_bytes=1 << 16, matrix=32)

    def fixed(calls, device, effort):
        for call in calls.values():
            call()
        return {name: Timing(4.0, 3.0, 5.0, 2.0, 2, False) for name in calls}

    monkeypatch.setattr("bench.ceilings.time_calls", fixed)
    found = measure_ceilings(CPU, brief, sizes)
    assert found.read_bytes_per_s == 2**15
    assert found.copy_bytes_per_s == 2**16
    assert found.gemm_flops == dict.fromkeys(("float32", "bfloat16", "int8"), 32.0**3)


def test_a_product_that_a_device_lacks_has_no_ceiling(brief, monkeypatch):
    def refuse(*_):
        raise RuntimeError("not here")

    monkeypatch.setattr(torch, "_int_mm", refuse)
    found = measure_ceilings(CPU, brief, Sizes(1 << 12, 16))
    assert set(found.gemm_flops) == {"float32", "bfloat16"}
    assert found.read_bytes_per_s > 0


GRID = [{"a": a, "b": b} for a in range(5) for b in range(5)]


@given(
    costs=st.lists(st.one_of(st.none(), st.floats(0.1, 9)), min_size=25, max_size=25),
    limit=st.integers(1, 30),
    start=st.integers(0, 24),
)
def test_a_search_is_never_worse_than_the_default_and_measures_nothing_twice(costs, limit, start):
    measured: list[dict[str, int]] = []

    def cost(config):
        measured.append(dict(config))
        return costs[GRID.index(config)]

    best, found = search(GRID[start], GRID, cost, limit=limit)
    assert len(measured) <= limit
    assert len({tuple(config.items()) for config in measured}) == len(measured)
    assert GRID[start] in measured
    known = [costs[GRID.index(c)] for c in measured if costs[GRID.index(c)] is not None]
    assert found == min(known, default=None)
    assert found is None or costs[GRID.index(best)] == found
    assert found is not None or best == GRID[start]


def test_a_search_follows_single_changes_to_the_best_of_a_valley():
    grid = [{"a": a, "b": b} for a in range(20) for b in range(20)]
    calls = []

    def cost(config):
        calls.append(config)
        return abs(config["a"] - 13) + abs(config["b"] - 7) + 1.0

    best, found = search(grid[0], grid, cost, limit=200)
    assert (best, found) == ({"a": 13, "b": 7}, 1.0)
    assert len(calls) < 100, "not all of them"


@pytest.mark.parametrize("other", [{"c": 1}, {"a": 1, "b": 1, "c": 1}])
def test_configurations_of_other_parameters_are_no_neighbours(other):
    best, _ = search({"a": 0, "b": 0}, [other], lambda c: len(c) + 1.0, limit=9)
    assert best == (other if len(other) == 1 else {"a": 0, "b": 0})


class FakeEvent:
    """An event whose time is how many launches were before it."""

    launches = 0

    def __init__(self, enable_timing):
        assert enable_timing

    def record(self):
        self.at = FakeEvent.launches

    def elapsed_time(self, end):
        return float(end.at - self.at)


@pytest.fixture
def fake_gpu(monkeypatch):
    """CUDA as far as timing asks for it; returns what was called."""
    events: list[str] = []

    class FakeGraph:
        def replay(self):
            FakeEvent.launches += 1
            events.append("replay")

    class Capture:
        def __init__(self, graph):
            events.append("capture")

        def __enter__(self):
            return None

        def __exit__(self, *_):
            return False

    monkeypatch.setattr(torch.cuda, "CUDAGraph", FakeGraph)
    monkeypatch.setattr(torch.cuda, "graph", Capture)
    monkeypatch.setattr(torch.cuda, "Event", FakeEvent)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device=None: events.append("wait"))
    monkeypatch.setattr(timing, "_flusher", lambda device, n: lambda: events.append("flush"))
    return events


def test_on_a_gpu_a_graph_of_the_call_is_timed_between_events(fake_gpu):
    calls = []
    found = time_calls({"a": lambda: calls.append(1)}, torch.device("cuda"), Effort(0.0, 2, 2))
    assert found["a"] == Timing(1e-3, 1e-3, 1e-3, 1e-3, 2, True), "one launch, in milliseconds"
    assert len(calls) == 4, "three to warm up, one in the capture"
    assert fake_gpu == [
        *("wait", "capture", "replay", "wait"),
        *("flush", "replay", "wait"),
        *("flush", "replay", "wait"),
    ]


def test_what_cannot_be_captured_is_launched_as_it_is(fake_gpu):
    def waits() -> None:
        FakeEvent.launches += 1
        if fake_gpu and fake_gpu[-1] == "capture":
            raise RuntimeError("operation not permitted when stream is capturing")

    found = time_calls({"a": waits}, torch.device("cuda"), Effort(0.0, 2, 2))
    assert not found["a"].is_graph
    assert found["a"].num_rounds == 2
    assert "replay" not in fake_gpu
