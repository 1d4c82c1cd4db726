import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from llmopt.bench import latencies, metrics, work
from llmopt.hardware.peaks import Peak
from llmopt.results.codec import from_json, to_json
from llmopt.results.schema import (
    Ceilings,
    CostModel,
    EnergyRecord,
    Goodput,
    LoadSpec,
    RunRecord,
    SloTerm,
    Summary,
    WindowedLayers,
)

COST = CostModel(
    flops_per_token_linear=1000,
    flops_lm_head=300,
    flops_attention_per_token_per_context=7,
    weight_bytes=50_000,
    kv_bytes_per_token=11,
)
CEILINGS = Ceilings(
    gemm_flops={"float32": 1e6, "bfloat16": 4e6},
    copy_bytes_per_s=1e6,
    read_bytes_per_s=2e6,
    measured_at="2026-01-01T00:00:00+00:00",
    num_threads=2,
    device="cpu",
)


def test_definitions_on_one_request(make):
    request = make.request()  # scheduled 0.2, sent 0.3, tokens at 1.0, 1.5, 2.5
    assert latencies.ttft_s(request) == pytest.approx(0.8)  # from the schedule, not from sending
    assert latencies.tpot_s(request) == pytest.approx(0.75)  # two gaps, first token excluded
    assert list(latencies.itl_s(request)) == pytest.approx([0.5, 1.0])
    assert latencies.e2e_s(request) == pytest.approx(2.3)


def test_itl_counts_tokens_not_events(make):
    request = make.request(token_times_s=(1.0, 2.0, 5.0), token_counts=(1, 4, 1))
    assert list(latencies.itl_s(request)) == pytest.approx([0.25, 0.25, 0.25, 0.25, 3.0])
    assert latencies.tpot_s(request) == pytest.approx(4 / 5)


def test_requests_of_one_token_have_no_tpot(make):
    request = make.request(token_times_s=(1.0,))
    assert latencies.tpot_s(request) is None
    assert list(latencies.itl_s(request)) == []
    assert latencies.ttft_s(request) == pytest.approx(0.8)


def test_requests_without_tokens_have_no_latency(make):
    request = make.request(token_times_s=())
    assert (
        latencies.ttft_s(request) is latencies.tpot_s(request) is latencies.e2e_s(request) is None
    )


def test_useful_flops_counts_what_an_engine_computes(make):
    # 10 prompt tokens and 3 output tokens: positions 0..11 pass through the layers, and the token
    # at position i attends to i + 1 tokens; hidden states 9, 10 and 11 go through the lm_head.
    by_hand = sum(1000 + 7 * (position + 1) for position in range(12)) + 3 * 300
    assert work.useful_flops([make.request()], COST) == by_hand
    assert work.useful_flops([make.request()] * 2, COST) == 2 * by_hand
    assert work.useful_flops([make.request(token_times_s=())], COST) == 0


def test_layers_with_a_window_see_no_more_than_that(make):
    cost = replace(COST, windowed_layers=(WindowedLayers(4, 5, 3), WindowedLayers(99, 2, 1)))
    request = make.request()
    seen = sum(5 * min(position + 1, 4) + 2 * (position + 1) for position in range(12))
    flops = work.useful_flops([request], COST) + seen
    assert work.useful_flops([request], cost) == flops
    moved = work.moved_bytes([request], 5, COST) + 3 * (12 + 10 + 4 + 4) + (12 + 10 + 11 + 12)
    assert work.moved_bytes([request], 5, cost) == moved


@given(st.integers(0, 40), st.integers(1, 50))
def test_tokens_that_are_seen_are_counted(num_tokens, window):
    seen = [min(place, window) for place in range(1, num_tokens + 1)]
    assert work.attended(num_tokens, window) == sum(seen)
    assert work.attended(num_tokens) == sum(range(num_tokens + 1))


def test_moved_bytes_counts_steps_and_cache(make):
    # writes 12; the prompt's 10 read once; the decode steps at positions 10 and 11 read 11 and 12
    by_hand = 5 * 50_000 + 11 * (12 + 10 + 11 + 12)
    assert work.moved_bytes([make.request()], 5, COST) == by_hand


def test_mfu_and_mbu_are_shares_of_the_measured_ceilings(make):
    run = make.run([make.request()])  # 4 s
    flops = work.useful_flops(run.requests, COST)
    assert work.mfu(run, COST, CEILINGS, "float32") == pytest.approx(flops / 4 / 1e6)
    assert work.mfu(run, COST, CEILINGS, "bfloat16") == pytest.approx(flops / 4 / 4e6)
    assert work.mfu(run, COST, CEILINGS, "float16") is None
    moved = work.moved_bytes(run.requests, 5, COST)
    assert work.mbu(run, COST, CEILINGS) == pytest.approx(moved / 4 / 2e6)
    assert work.mbu(replace(run, step_stats={}), COST, CEILINGS) is None


def test_failed_requests_are_no_samples(make):
    served = make.request()
    failed = make.request(error="boom", token_times_s=(9.0, 9.1), done_s=None)
    alone = metrics.summarize([make.run([served])], COST, CEILINGS, "float32")
    both = metrics.summarize([make.run([served, failed])], COST, CEILINGS, "float32")
    for name in ("ttft_ms", "tpot_ms", "itl_ms", "e2e_ms", "output_throughput"):
        assert getattr(both, name) == getattr(alone, name)


def test_rates_are_medians_over_runs(make):
    runs = [make.run([make.request()], duration_s=d) for d in (4.0, 2.0, 40.0)]
    summary = metrics.summarize(runs, COST, CEILINGS, "float32")
    assert summary.run_output_throughput == pytest.approx((0.75, 1.5, 0.075))
    assert summary.output_throughput == pytest.approx(0.75)
    assert summary.total_throughput == pytest.approx(13 / 4)
    assert summary.request_throughput == pytest.approx(0.25)
    assert summary.mfu == pytest.approx(work.mfu(runs[0], COST, CEILINGS, "float32"))
    assert summary.run_tpot_ms == pytest.approx((750, 750, 750))
    assert summary.ttft_ms is not None
    assert summary.ttft_ms.n == 3


def test_runs_without_cost_have_latencies_only(make):
    summary = metrics.summarize([make.run([make.request()])], None, None, "float32")
    assert summary.mfu is summary.mbu is None
    assert summary.e2e_ms is not None


def test_run_in_which_everything_failed(make):
    run = make.run([make.request(error="boom", token_times_s=(), done_s=None)])
    summary = metrics.summarize([run], COST, CEILINGS, "float32")
    assert summary.ttft_ms is summary.tpot_ms is summary.itl_ms is summary.e2e_ms is None
    assert summary.output_throughput == 0
    assert summary.run_tpot_ms == ()


@st.composite
def event_times(draw):
    """Scheduled time, ascending event times, tokens per event."""
    scheduled = draw(st.floats(0, 10))
    gaps = draw(st.lists(st.floats(1e-6, 10), min_size=1, max_size=12))
    counts = draw(st.lists(st.integers(1, 5), min_size=len(gaps), max_size=len(gaps)))
    return scheduled, tuple(np.cumsum([scheduled, *gaps])[1:].tolist()), tuple(counts)


@given(requests=st.lists(event_times(), min_size=1, max_size=8))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])  # makers keep no state
def test_latencies_are_consistent(make, requests):
    records = [
        make.request(scheduled_s=scheduled, token_times_s=times, token_counts=counts)
        for scheduled, times, counts in requests
    ]
    for record in records:
        ttft, e2e, tpot = (
            latencies.ttft_s(record),
            latencies.e2e_s(record),
            latencies.tpot_s(record),
        )
        gaps = list(latencies.itl_s(record))
        assert len(gaps) == record.num_output_tokens - record.token_counts[0]
        assert math.isclose(ttft + sum(gaps), e2e, rel_tol=1e-9)
        if tpot is not None:
            assert math.isclose(ttft + tpot * (record.num_output_tokens - 1), e2e, rel_tol=1e-9)


def test_summary_can_be_recomputed_from_what_is_stored(make):
    """What a result file keeps gives the summary again, by numpy and from the events alone."""
    rng = np.random.default_rng(0)
    runs = [
        make.run(
            [
                make.request(
                    scheduled_s=float(start),
                    token_times_s=tuple((start + np.cumsum(rng.exponential(0.1, 20))).tolist()),
                )
                for start in rng.uniform(0, 3, 7)
            ],
            repeat=repeat,
            duration_s=float(5 + repeat),
            step_stats={"num_steps": 140.0 + repeat},
        )
        for repeat in range(3)
    ]
    summary = metrics.summarize(runs, COST, CEILINGS, "bfloat16")
    stored = [from_json(RunRecord, to_json(run), "test") for run in runs]
    assert metrics.summarize(stored, COST, CEILINGS, "bfloat16") == summary
    assert from_json(Summary, to_json(summary), "test") == summary

    requests = [request for run in stored for request in run.requests]
    times = np.array([request.token_times_s for request in requests])  # [21, 20]
    ttft_ms = 1e3 * (times[:, 0] - [request.scheduled_s for request in requests])
    tpot_ms = 1e3 * (times[:, -1] - times[:, 0]) / 19
    itl_ms = 1e3 * np.diff(times, axis=1).ravel()
    for found, expected in (
        (summary.ttft_ms, ttft_ms),
        (summary.tpot_ms, tpot_ms),
        (summary.itl_ms, itl_ms),
    ):
        assert found.p50 == pytest.approx(np.percentile(expected, 50))
        assert found.p99 == pytest.approx(np.percentile(expected, 99))
        assert found.n == expected.size
    throughputs = [7 * 20 / (5 + repeat) for repeat in range(3)]
    assert summary.output_throughput == pytest.approx(np.median(throughputs))
    tokens = 10 + 20 - 1
    attended = tokens * (tokens + 1) / 2
    flops = 7 * (tokens * 1000 + 20 * 300 + attended * 7)
    assert summary.mfu == pytest.approx(np.median([flops / (5 + r) / 4e6 for r in range(3)]))
    cached = tokens + 10 + sum(range(11, 11 + 19))
    moved = [(140 + r) * 50_000 + 7 * cached * 11 for r in range(3)]
    assert summary.mbu == pytest.approx(np.median([m / (5 + r) / 2e6 for r, m in enumerate(moved)]))


def test_new_numbers_on_known_events(make):
    """Two runs by hand: 2 requests of 10 prompt tokens, sent 0.1 s late; tokens 1, 3, 1."""
    slo = (SloTerm("ttft", 1000), SloTerm("e2e", 2000, 50))
    load = LoadSpec(2, 2, 10, 5, 0, slo=slo)
    late = {"token_times_s": (1.0, 1.5, 2.5), "token_counts": (1, 3, 1)}
    requests = [
        make.request(num_cached_tokens=4, **late),
        make.request(num_cached_tokens=1, num_preemptions=2, **late),
    ]
    stats = {"num_steps": 5.0, "num_draft_tokens": 8.0, "num_accepted_tokens": 6.0}
    stats["peak_used_blocks"] = 3.0
    runs = [
        make.run(
            requests,
            step_stats=stats,
            repeat=repeat,
            startup_s=2.0 + repeat,
            peak_memory_bytes=100 + repeat,
            energy=EnergyRecord(50.0, "nvml", "GPU only"),
        )
        for repeat in range(2)
    ]
    found = metrics.summarize(
        runs,
        COST,
        CEILINGS,
        "bfloat16",
        load=load,
        peak=Peak(1e7, 1e8),
        num_blocks=12,
        price_per_hour=3.6,
    )
    assert found.ttft_sent_ms.p50 == pytest.approx(700)
    assert found.e2e_sent_ms.p50 == pytest.approx(2200)
    assert found.ntpot_ms.p50 == pytest.approx(2300 / 5)
    assert found.icl_ms.p50 == pytest.approx(750)
    assert found.client_lag_ms.p50 == pytest.approx(100)
    assert found.input_throughput == pytest.approx(20 / 4)
    assert found.error_share == 0
    assert found.peak_concurrency == 2
    assert found.mean_concurrency == pytest.approx(2 * 2.21 / 4)
    assert found.tokens_per_event == pytest.approx(5 / 3)
    assert found.cache_hit_rate == pytest.approx(5 / 20)
    assert found.acceptance_rate == pytest.approx(6 / 8)
    assert found.num_preemptions == 4
    assert found.peak_kv_use == pytest.approx(3 / 12)
    assert found.startup_s == pytest.approx(2.5)
    assert found.peak_memory_bytes == 101
    assert found.joules_per_token == pytest.approx(100 / 20)
    assert found.cost_per_million_tokens == pytest.approx(3.6 / 3600 / 2.5 * 1e6)
    assert found.mfu_datasheet == pytest.approx(found.mfu * 4e6 / 1e7)
    assert found.mbu_datasheet == pytest.approx(found.mbu * 2e6 / 1e8)
    # from 0.3 to 2.51 two requests are in flight; all their tokens come in this time
    assert found.steady.output_throughput == pytest.approx(10 / 2.21)
    assert found.steady.total_throughput == pytest.approx(30 / 2.21)
    assert found.steady.share == pytest.approx(2.21 / 4)
    # each request takes 0.8 s and 2.3 s: the second bound is broken by all of them
    assert found.goodput == Goodput(0.0, 0.0, 0.0, False)
    assert from_json(Summary, to_json(found), "test") == found


def test_goodput_counts_what_keeps_the_bounds(make):
    load = LoadSpec(1, 1, 10, 3, 0, slo=(SloTerm("ttft", 1000),))
    run = make.run([make.request(), make.request(error="gone")])
    found = metrics.summarize([run], None, None, "float32", load=load)
    assert found.goodput == Goodput(0.25, 0.75, 0.5, False)
    assert found.error_share == 0.5


def test_what_is_not_known_is_none(make):
    found = metrics.summarize([make.run([make.request()])], COST, CEILINGS, "float32")
    for name in ("goodput", "cache_hit_rate", "acceptance_rate", "peak_kv_use", "startup_s"):
        assert getattr(found, name) is None, name
    for name in ("joules_per_token", "mfu_datasheet", "mbu_datasheet", "drift"):
        assert getattr(found, name) is None, name
    assert found.output_throughput_ci is found.cost_per_million_tokens is None
    assert Peak(1e7, 1e8).flops("float32") is None  # data sheets have no plain float32 here


def test_hits_come_from_counters_where_requests_do_not_say(make):
    stats = {"num_prompt_tokens": 40.0, "num_prefix_hit_tokens": 10.0}
    assert metrics.cache_hit_rate([make.run([make.request()], step_stats=stats)]) == 0.25
    assert metrics.cache_hit_rate([make.run([make.request()])]) is None


def test_intervals_come_from_runs_or_from_blocks_of_one_run(make):
    runs = [make.run([make.request()] * 2, duration_s=d, repeat=i) for i, d in enumerate((4, 5, 6))]
    found = metrics.summarize(runs, None, None, "float32")
    assert np.mean(found.output_throughput_ci) == pytest.approx(np.mean([6 / 4, 6 / 5, 6 / 6]))
    assert np.mean([6 / 4, 6 / 5, 6 / 6]) != pytest.approx(found.output_throughput)  # the median
    assert found.tpot_p50_ci == pytest.approx((750, 750))
    rng = np.random.default_rng(0)
    requests = [
        make.request(token_times_s=(1.0, 1.0 + gap, 1.0 + 2 * gap))
        for gap in rng.uniform(0.1, 0.2, 200)
    ]
    low, high = metrics.summarize([make.run(requests)], None, None, "float32").tpot_p50_ci
    assert 130 < low < 150 < high < 170


def test_a_drift_over_five_runs_is_seen(make):
    runs = [
        make.run(
            [make.request(token_times_s=(1.0, 1.5 + 0.01 * i, 2.0 + 0.02 * i))],
            started_at=f"2026-01-01T00:0{i}:00.000+00:00",
        )
        for i in (3, 1, 4, 0, 2)  # in any order in the file
    ]
    found = metrics.summarize(runs, None, None, "float32").drift
    assert found.per_run == pytest.approx(10 / 520)
    assert found.p_value < 0.05
    assert metrics.summarize(runs[:4], None, None, "float32").drift is None


def test_the_steady_window_leaves_ramp_and_drain_out(make):
    """Two requests: alone from 0 to 1 and from 9 to 12, together from 1 to 9."""
    one = make.request(sent_s=0.0, token_times_s=(0.5, 2.0, 9.0), done_s=9.0)
    two = make.request(
        sent_s=1.0, token_times_s=(3.0, 4.0, 10.0, 12.0), done_s=12.0, num_prompt_tokens=100
    )
    found = metrics.steady([make.run([one, two], duration_s=12.0)])
    assert found.output_throughput == pytest.approx(4 / 8)  # at 2, 9, 3 and 4
    assert found.total_throughput == pytest.approx(104 / 8)  # the first prompt was before
    assert found.share == pytest.approx(8 / 12)
    failed = make.request(sent_s=1.0, token_times_s=(3.0, 4.0), done_s=12.0, error="gone")
    found = metrics.steady([make.run([one, failed], duration_s=12.0)])
    assert found.output_throughput == pytest.approx(2 / 8)
