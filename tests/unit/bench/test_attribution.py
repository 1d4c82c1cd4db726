"""Where the time of a run went, on records whose answer is known by hand."""

import asyncio
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from llmopt.backends.builtin import BuiltinBackend
from llmopt.bench.attribution import PARTS, attribute_run
from llmopt.bench.engine_settings import engine_config
from llmopt.bench.loadgen import run_load
from llmopt.bench.workload import make_plan
from llmopt.bench.workload_spec import open_load
from llmopt.models.loader import load_model
from llmopt.recipe.loads import Load
from llmopt.results.attribution import StepGroup, to_counters
from llmopt.results.schema import Ceilings, CostModel, WindowedLayers

# A machine that reads 100 bytes/s and computes 1000 FLOP/s, a model of 60 + 40 bytes.
CEILINGS = Ceilings({"bfloat16": 1000.0}, 100.0, 100.0, "2026-01-01T00:00:00+00:00", 1, "cpu")
COST = CostModel(120, 80, 4, 100, 2)
STAGES = {"draft_s": 0.0, "schedule_s": 0.25, "update_s": 0.125}
# 5 steps of one token: reading 60 bytes takes 0.6 s, 120 FLOPs 0.12 s
DECODE = StepGroup(
    num_steps=5,
    num_requests=5,
    num_tokens=5,
    num_rows=5,
    num_head_steps=5,
    num_attended=100,
    kv_bytes=100,
    lm_head_bytes=200,
    forward_s=8.0,
    sample_s=0.5,
)
# 2 steps of 10 tokens: 1200 FLOPs take 1.2 s; no token is sampled
PREFILL = StepGroup(2, 2, 20, 0, 0, 800, 60.0, 0, 4.0, 0.0)


def run_of(make: Any, *groups: StepGroup, **changes: Any) -> Any:
    stats = dict(STAGES)
    for place, group in enumerate(groups, start=1):
        stats |= to_counters(place, 1, group)
    times = {"scheduled_s": 2.0, "sent_s": 3.0, "token_times_s": (4.0, 19.0), "done_s": 19.0}
    defaults = {"step_stats": stats, "duration_s": 20.0}
    return make.run([make.request(**times)], **(defaults | changes))


def seconds(found: Any) -> dict[str, float]:
    return {part.name: part.seconds for part in found.parts}


def test_every_part_by_hand(make):
    found = attribute_run(run_of(make, DECODE, PREFILL), COST, CEILINGS, "bfloat16")
    expected = {
        "weights": 5 * 0.6,
        "matmul": 2 * 1.2,
        "kv": 100 / 100,
        "attention": 800 * 4 / 1000,
        "lm_head": 5 * 0.4,
        "operators": 8.0 - 3.0 - 1.0 - 2.0,  # of the decode steps; prefill is below its roofline
        "sampling": 0.5,
        "drafting": 0.0,
        "scheduling": 0.25,
        "update": 0.125,
        "client": 1.0,
        "idle": 2.0 + 1.0,
    }
    # prefill was measured at 4.0 s of an ideal 2.4 + 3.2
    for name in ("matmul", "attention"):
        expected[name] *= 4.0 / 5.6
    expected["unattributed"] = 20.0 - sum(expected.values())
    assert seconds(found) == pytest.approx(expected)
    ideals = {part.name: part.ideal_s for part in found.parts if part.ideal_s is not None}
    assert ideals == pytest.approx(
        {"weights": 3.0, "matmul": 2.4, "kv": 1.0, "attention": 3.2, "lm_head": 2.0}
    )
    assert (found.linear_bytes, found.lm_head_bytes, found.kv_bytes) == (60, 40, 160)
    assert found.prompt_operators_s == 0.0
    slow = replace(PREFILL, forward_s=5.6 + 0.4)
    slower = attribute_run(run_of(make, DECODE, slow), COST, CEILINGS, "bfloat16")
    assert slower.prompt_operators_s == pytest.approx(0.4)
    assert slower.seconds("operators") == pytest.approx(2.4)
    assert found.matmul_tokens == 10
    assert attribute_run(run_of(make, DECODE), COST, CEILINGS, "bfloat16").matmul_tokens is None
    assert (found.num_steps, found.num_output_tokens) == (7, 2)


def test_time_in_flight_without_a_step_is_waiting(make):
    found = attribute_run(run_of(make, DECODE), COST, CEILINGS, "bfloat16")
    assert found.in_flight_s == 16.0
    assert found.waiting_s == pytest.approx(16.0 - (8.0 + 0.5 + 0.375))
    # two requests in every step: each is served all the time
    crowd = replace(DECODE, num_requests=10)
    run = run_of(make, crowd)
    run = replace(run, requests=run.requests * 2)
    again = attribute_run(run, COST, CEILINGS, "bfloat16")
    assert again.waiting_s == pytest.approx(2 * found.waiting_s)


def test_gaps_are_counted_once_however_many_requests_are_due(make):
    run = run_of(make, DECODE)
    (first,) = run.requests
    inside = replace(first, scheduled_s=4.0, sent_s=5.0, done_s=10.0)
    found = attribute_run(replace(run, requests=(inside, first)), COST, CEILINGS, "bfloat16")
    assert (found.seconds("idle"), found.seconds("client")) == (3.0, 1.0)


def test_windowed_layers_are_flops_of_the_attention_too(make):
    windowed = replace(
        COST,
        flops_attention_per_token_per_context=1,
        windowed_layers=(WindowedLayers(8, 2, 1), WindowedLayers(16, 1, 1)),
    )
    found = attribute_run(run_of(make, PREFILL), windowed, CEILINGS, "bfloat16")
    same = attribute_run(run_of(make, PREFILL), COST, CEILINGS, "bfloat16")
    assert seconds(found) == pytest.approx(seconds(same))


def test_without_a_peak_bytes_alone_bound(make):
    found = attribute_run(run_of(make, DECODE, PREFILL), COST, CEILINGS, "float16")
    assert {"matmul", "attention"}.isdisjoint(seconds(found))
    assert found.seconds("weights") == pytest.approx(7 * 0.6)


def test_a_head_whose_bytes_nobody_counted_is_absent(make):
    groups = [replace(DECODE, lm_head_bytes=None)]
    found = attribute_run(run_of(make, *groups), COST, CEILINGS, "bfloat16")
    assert "lm_head" not in seconds(found)
    assert (found.seconds("weights"), found.linear_bytes) == (5.0, 100)


def test_on_a_gpu_sampling_waits_for_the_forward_pass(make):
    gpu = replace(CEILINGS, device="cuda")
    found = attribute_run(
        run_of(make, replace(DECODE, forward_s=0.5, sample_s=8.0)), COST, gpu, "bfloat16"
    )
    assert "sampling" not in seconds(found)
    assert found.seconds("weights", "kv", "lm_head", "operators") == pytest.approx(8.5)


@pytest.mark.parametrize(
    "stats",
    [{}, {"num_steps": 3.0}, to_counters(1, 1, DECODE), STAGES, {"forward_s": 1.0} | STAGES],
)
def test_a_backend_that_does_not_count_has_no_attribution(make, stats):
    assert attribute_run(run_of(make, step_stats=stats), COST, CEILINGS, "bfloat16") is None


TIMES = st.floats(0, 100, allow_nan=False)
COUNTS = st.integers(1, 1000)
GROUPS = st.builds(
    StepGroup, COUNTS, COUNTS, COUNTS, COUNTS, COUNTS, TIMES, TIMES, TIMES, TIMES, TIMES
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])  # only makers
@given(
    groups=st.lists(GROUPS, min_size=1, max_size=4),
    stages=st.tuples(TIMES, TIMES, TIMES),
    wall_s=st.floats(0.001, 100),
    device=st.sampled_from(["cpu", "cuda", "cuda:1"]),
)
def test_parts_are_never_negative_and_sum_to_the_wall_time(make, groups, stages, wall_s, device):
    stats = dict(zip(STAGES, stages, strict=True))
    for place, group in enumerate(groups, start=1):
        stats |= to_counters(place, 1, group)
    ceilings = replace(CEILINGS, device=device)
    run = run_of(make, step_stats=stats, duration_s=wall_s)
    found = attribute_run(run, COST, ceilings, "bfloat16")
    assert all(part.seconds >= 0 for part in found.parts)
    assert ("sampling" in {part.name for part in found.parts}) is (device == "cpu")
    assert sum(part.seconds for part in found.parts) == pytest.approx(wall_s)
    assert [p.name for p in found.parts] == [n for n in PARTS if n in {p.name for p in found.parts}]
    assert 0 <= found.waiting_s <= max(0.0, found.in_flight_s)


def test_our_own_runtime_counts_all_that_an_attribution_needs(tiny_llama):
    model = load_model(tiny_llama, dtype="float32")
    load = open_load(Load(2, 4, 40, 12), warmup_requests=1)
    plan = make_plan(load, [2 + i % 97 for i in range(999)], seed=0, repeat=0)
    backend = BuiltinBackend(model, engine_config(load))
    backend.start()
    run = backend.drive(lambda: asyncio.run(run_load(backend, plan, repeat=0, seed=0)))
    backend.stop()
    head_bytes = model.lm_head.weight_bytes
    cost = CostModel(2, 2, 2, model.weight_bytes, 2)
    ceilings = replace(CEILINGS, gemm_flops={"float32": 1e11}, read_bytes_per_s=1e12)
    found = attribute_run(run, cost, ceilings, "float32")
    assert found.lm_head_bytes == head_bytes
    assert found.linear_bytes == model.weight_bytes - head_bytes
    assert found.num_output_tokens == 48
    # the warm-up is not in it: 4 prompts of 40, and all output tokens but the last of each
    assert run.step_stats["num_scheduled_tokens"] == 4 * (40 + 12 - 1)
    kv_bytes = 2 * model.config.num_layers * model.config.num_kv_heads * model.config.head_dim * 4
    assert found.kv_bytes == kv_bytes * 4 * sum([40, *range(41, 52)])
    assert found.seconds("operators") > 0
    assert found.share("unattributed") < 0.8
    assert found.seconds("weights") > 0
