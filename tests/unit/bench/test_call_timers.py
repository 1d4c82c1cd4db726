"""Timers in place of a model's calls: what they see, and that nothing is left behind."""

import time
from typing import Any

import pytest
import torch

from llmopt.bench.call_timers import CallCounter, CallTimer, replaced
from llmopt.bench.module_calls import Call, calls_of
from llmopt.engine.engine import Engine, EngineConfig
from llmopt.engine.sampling_params import SamplingParams
from llmopt.layers.norm import unchanged
from llmopt.models import decoder as decoder_module
from llmopt.models.loader import load_model

CPU = torch.device("cpu")
PROMPT = list(range(3, 24))


def state(model: Any) -> list[Any]:
    """Everything that timers may have replaced."""
    owners = [model, decoder_module, *model.blocks]
    owners += [part for block in model.blocks for part in (block.attention, block.mlp)]
    owners += [e for block in model.blocks for e in getattr(block.mlp, "experts", ())]
    return [dict(vars(owner)) for owner in owners]


def tokens_of(model: Any, **config: Any) -> list[int]:
    engine = Engine(model, EngineConfig(num_blocks=16, max_model_len=64, **config))
    engine.add_request("0", PROMPT, SamplingParams(max_tokens=6, ignore_eos=True))
    return [t for _ in range(6) for out in engine.step() for t in out.token_ids]


@pytest.mark.parametrize(
    ("architecture", "names"),
    [
        ("llama", {"norms", "rope tables", "gate_up", "activation", "down"}),
        ("qwen3", {"norms", "rope tables", "gate_up", "activation", "down"}),
        ("gemma2", {"norms", "rope tables", "gate_up", "activation", "down"}),
        ("gpt2", {"norms", "rope tables", "gate_up", "activation", "down"}),  # tables of no rope
        ("qwen3_moe", {"norms", "rope tables", "routing", "gate_up", "activation", "down"}),
    ],
)
def test_counting_changes_no_token_and_nothing_stays(make_tiny_model, architecture, names):
    model = load_model(make_tiny_model(architecture), dtype="float32")
    expected, before = tokens_of(model), state(model)  # what is made at the first use is there
    counter = CallCounter(lambda num_bytes, num_flops: num_bytes + num_flops)
    with replaced(calls_of(model), counter.counted):
        assert tokens_of(model) == expected
    assert state(model) == before
    usual = {"embedding", "qkv", "output", "rope, KV store", "attention", "lm_head"}
    assert set(counter.work) == names | usual
    assert tokens_of(model) == expected


def test_the_work_of_a_step_by_hand(tiny_llama):
    model = load_model(tiny_llama, dtype="float32")
    config = model.config
    counter = CallCounter(lambda num_bytes, num_flops: max(num_bytes / 100, num_flops / 1000))
    engine = Engine(model, EngineConfig(num_blocks=16, max_model_len=64))
    engine.add_request("0", PROMPT, SamplingParams(max_tokens=6, ignore_eos=True))
    engine.step()
    with replaced(calls_of(model), counter.counted):
        engine.step()
    names = ("qkv", "attention", "rope, KV store")
    qkv, attention, store = (counter.work[name] for name in names)
    weights = [block.attention.qkv for block in model.blocks]
    assert qkv.num_calls == config.num_layers == 2
    assert qkv.num_bytes == sum(linear.weight_bytes for linear in weights)
    assert qkv.num_flops == sum(2 * w.in_features * w.out_features for w in weights)
    assert qkv.ideal_s == max(qkv.num_bytes / 100, qkv.num_flops / 1000)
    assert list(qkv.kernels) == ["dense"]
    kv_bytes = 2 * config.num_kv_heads * config.head_dim * 4
    rows = 2 * config.num_heads * config.head_dim * 4  # a query, and what comes of it
    context = len(PROMPT) + 1
    assert attention.num_bytes == 2 * (context * kv_bytes + rows)
    assert attention.num_flops == 2 * 4 * config.num_heads * config.head_dim * context
    tables = 2 * config.head_dim * 4  # a cosine and a sine for each channel
    query = config.num_heads * config.head_dim * 4
    # read: all heads and the tables; written: the query, and keys and values into the cache
    assert store.num_bytes == 2 * ((query + kv_bytes + tables) + query + kv_bytes)
    assert store.num_calls == 2


@pytest.mark.parametrize(("kv_dtype", "element_bytes"), [("fp8", 1), ("int8", 1 + 2 / 16)])
def test_a_compact_cache_has_fewer_bytes(tiny_llama, kv_dtype, element_bytes):
    model = load_model(tiny_llama, dtype="float32")
    counter = CallCounter(lambda *_: 0.0)
    with replaced(calls_of(model), counter.counted):
        tokens_of(model, kv_dtype=kv_dtype)
    steps = [len(PROMPT) + i for i in range(6)]
    assert model.config.head_dim == 16
    slot = 2 * model.config.num_kv_heads * 16 * element_bytes
    rows = 2 * model.config.num_heads * 16 * 4
    num_tokens = len(PROMPT) + 5
    assert counter.work["attention"].num_bytes == 2 * (sum(steps) * slot + num_tokens * rows)


def test_experts_are_counted_where_tokens_go(make_tiny_model):
    model = load_model(make_tiny_model("qwen3_moe"), dtype="float32")
    engine = Engine(model, EngineConfig(num_blocks=16, max_model_len=64))
    engine.add_request("0", PROMPT, SamplingParams(max_tokens=6, ignore_eos=True))
    engine.step()
    counter = CallCounter(lambda *_: 0.0)
    with replaced(calls_of(model), counter.counted):
        engine.step()
    expert = model.blocks[0].mlp.experts[0]
    assert counter.work["down"].num_calls == 2 * 3  # of 8 experts, one token goes to 3
    assert counter.work["down"].num_bytes == 2 * 3 * expert.down.weight_bytes


class Broken:
    def work(self) -> None:
        raise RuntimeError("in the call")


def test_after_an_error_everything_is_as_before():
    owner = Broken()
    owner.own = print
    calls = [
        Call(owner, "work", "a", lambda *_: (0, 0)),
        Call(owner, "own", "b", lambda *_: (0, 0)),
    ]
    with pytest.raises(RuntimeError, match="in the call"), replaced(calls, CallTimer(CPU).timed):
        owner.work()
    assert vars(owner) == {"own": print}


def test_a_replacement_that_fails_restores_those_before_it():
    owner = Broken()

    def refuse(call: Call, function: Any) -> Any:
        if call.name == "b":
            raise ValueError("no timer")
        return function

    calls = [Call(owner, "work", name, lambda *_: (0, 0)) for name in "ab"]
    with pytest.raises(ValueError, match="no timer"), replaced(calls, refuse):
        pass
    assert vars(owner) == {}


def test_the_timer_sums_the_seconds_of_a_name():
    class Slow:
        def first(self) -> int:
            time.sleep(0.01)
            return 1

        def second(self) -> None:
            time.sleep(0.02)

    owner, timer = Slow(), CallTimer(CPU)
    calls = [Call(owner, name, "slow", lambda *_: (0, 0)) for name in ("first", "second")]
    with replaced(calls, timer.timed):
        assert owner.first() == 1
        owner.second()
    assert 0.03 <= timer.finish()["slow"] < 0.5


def test_parts_that_a_model_lacks_are_no_calls(tiny_llama):
    model = load_model(tiny_llama, dtype="float32")
    calls = calls_of(model)
    assert all(getattr(call.owner, call.attribute) is not unchanged for call in calls)
    places = [(id(call.owner), call.attribute) for call in calls]
    assert len(set(places)) == len(places)


def test_on_a_gpu_the_seconds_are_those_between_events(monkeypatch):
    stream = {"at_ms": 0.0, "waited": 0}

    class FakeEvent:
        def __init__(self, enable_timing: bool) -> None:
            assert enable_timing

        def record(self) -> None:
            self.at_ms = stream["at_ms"]

        def elapsed_time(self, later: "FakeEvent") -> float:
            assert stream["waited"], "events are read when the GPU is done"
            return later.at_ms - self.at_ms

    def wait(device: Any) -> None:
        stream["waited"] += 1

    monkeypatch.setattr("llmopt.bench.call_timers._Event", FakeEvent)
    monkeypatch.setattr(torch.cuda, "synchronize", wait)

    class Kernels:
        def launch(self, work_ms: float) -> None:
            stream["at_ms"] += work_ms

    owner, timer = Kernels(), CallTimer(torch.device("cuda"))
    with replaced([Call(owner, "launch", "kernel", lambda *_: (0, 0))], timer.timed):
        owner.launch(2.0)
        stream["at_ms"] += 50.0  # of others
        owner.launch(3.0)
    assert timer.finish() == {"kernel": pytest.approx(0.005)}
    assert stream["waited"] == 1
