"""The profiled pass over a tiny model: shapes, sums, and that it leaves the model alone."""

import time
from dataclasses import replace
from typing import Any

import pytest

from llmopt.bench.profile import StepShape, profile_load, profile_steps, usual_shape
from llmopt.bench.workload_spec import open_load
from llmopt.engine.config import EngineConfig
from llmopt.models.decoder import Decoder
from llmopt.models.loader import load_model
from llmopt.recipe.loads import Load
from llmopt.results.attribution import StepGroup, to_counters
from llmopt.results.schema import Ceilings

CEILINGS = Ceilings({"float32": 1e11}, 1e10, 1e10, "2026-01-01T00:00:00+00:00", 1, "cpu")
LINEARS = {"qkv", "output", "gate_up", "down", "lm_head"}


@pytest.fixture(scope="module")
def model(tiny_llama: Any) -> Decoder:
    return load_model(tiny_llama, dtype="float32")


def test_both_steps_of_a_load_part_by_part(model):
    plan = open_load(Load(3, 6, 40, 12), warmup_requests=1)
    decode, prefill = profile_load(model, plan, None, CEILINGS, (), num_steps=6)
    assert (decode.kind, decode.num_requests, decode.num_tokens) == ("decode", 3, 3)
    assert (prefill.kind, prefill.num_requests, prefill.num_tokens) == ("prefill", 3, 120)
    assert (decode.num_steps, prefill.num_steps) == (6, 6)
    assert decode.context == pytest.approx(40 + 12 / 2, abs=2)
    assert prefill.context == 40
    for profile in (decode, prefill):
        names = [part.name for part in profile.parts]
        assert {"attention", "rope tables", "rope, KV store", "norms", "activation"} < set(names)
        assert {"sampler", "scheduler", "recording", "embedding"} | LINEARS < set(names)
        assert names[-1] == "rest of the step"
        (other,) = (part for part in profile.parts if part.name == "other operators, Python")
        assert 0 < other.seconds < profile.profiled_s
        assert all(part.seconds >= 0 for part in profile.parts)
        total = sum(part.seconds for part in profile.parts)
        assert total == pytest.approx(profile.profiled_s)
        assert 0 < profile.step_s < 10 * profile.profiled_s
        for part in profile.parts:
            assert (part.kernel == "dense") == (part.name in LINEARS)
            assert (part.ideal_s is None) == (part.num_bytes is None) == (part.num_calls == 0)


def test_ideals_are_those_of_the_larger_bound(model):
    shape = StepShape(2, 40, 1, 64)
    decode, prefill = profile_steps(model, EngineConfig(), shape, CEILINGS, num_steps=5)
    weight_bytes = sum(block.attention.qkv.weight_bytes for block in model.blocks)
    for profile, num_tokens in ((decode, 2), (prefill, 64)):
        (qkv,) = (part for part in profile.parts if part.name == "qkv")
        flops = 2 * num_tokens * weight_bytes / 4  # float32
        assert (qkv.num_calls, qkv.num_bytes, qkv.num_flops) == (2, weight_bytes, flops)
        assert qkv.ideal_s == pytest.approx(max(weight_bytes / 1e10, flops / 1e11))


def test_what_is_timed_apart_is_not_in_the_rest(model, monkeypatch):
    embed = model.embed

    def slow(*args: Any) -> Any:
        time.sleep(0.03)
        return embed(*args)

    monkeypatch.setattr(model, "embed", slow)
    shape = StepShape(1, 20, 1, 16)
    decode, _ = profile_steps(model, EngineConfig(), shape, CEILINGS, num_steps=5)
    seconds = {part.name: part.seconds for part in decode.parts}
    assert decode.parts[0].name == "embedding"
    assert seconds["embedding"] >= 0.03
    assert seconds["other operators, Python"] < 0.03
    assert seconds["rest of the step"] < 0.03


def test_without_a_budget_a_few_steps_must_do(model):
    shape = StepShape(1, 20, 1, 16)
    decode, prefill = profile_steps(
        model, EngineConfig(), shape, CEILINGS, num_steps=50, budget_s=0.0
    )
    assert (decode.num_steps, prefill.num_steps) == (5, 5)


def test_a_prompt_beyond_a_steps_budget_is_profiled_in_chunks(model):
    config = EngineConfig(max_num_batched_tokens=16, block_size=4)
    plan = open_load(Load(5, 6, 100, 20), warmup_requests=1)
    shape = usual_shape(plan.spec, config, (), model.config.max_model_len, num_steps=5)
    assert shape == StepShape(5, 110, 1, 16)
    decode, prefill = profile_steps(model, config, shape, CEILINGS, num_steps=5)
    assert (decode.num_tokens, prefill.num_tokens) == (5, 16)
    assert decode.context == pytest.approx(110, abs=30)


def test_a_model_of_a_short_length_is_profiled_within_it(make_tiny_llama):
    short = load_model(make_tiny_llama(max_position_embeddings=64), dtype="float32")
    plan = open_load(Load(2, 2, 50, 10), warmup_requests=0)
    decode, _ = profile_load(short, plan, None, CEILINGS, (), num_steps=5)
    assert decode.context + 5 < 64


def test_an_open_loop_has_the_batch_that_its_runs_had(make):
    load = open_load(Load(64, 20, 30, 10, kind="poisson", rate=2.0), warmup_requests=0).spec
    group = StepGroup(10, 30, 30, 10, 10, 0.0, 0.0, None, 1.0, 1.0)
    runs = [make.run([], step_stats=to_counters(3, 3, group))]
    runs += [make.run([], step_stats=to_counters(5, 5, replace(group, num_requests=50)))]
    shape = usual_shape(load, EngineConfig(), runs, 512)
    assert (shape.num_requests, shape.context) == (4, 35)
    assert usual_shape(load, EngineConfig(), (), 512).num_requests == 1
    few = EngineConfig(max_num_seqs=2)
    assert usual_shape(load, few, runs, 512).num_requests == 2


@pytest.mark.parametrize("architecture", ["gemma2", "qwen3_moe"])
def test_other_architectures_are_profiled_too(make_tiny_model, architecture):
    other = load_model(make_tiny_model(architecture), dtype="float32")
    decode, _ = profile_steps(other, EngineConfig(), StepShape(2, 60, 1, 8), CEILINGS, num_steps=5)
    assert {part.name for part in decode.parts} > LINEARS
