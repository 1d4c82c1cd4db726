from dataclasses import replace
from typing import Any

import pytest

from llmopt.bench import validity
from llmopt.results.schema import LengthSpec, LoadSpec, MachineState, WorkloadSpec

LOAD = LoadSpec(concurrency=2, num_requests=6, prompt_tokens=10, output_tokens=3, warmup_requests=1)
CLIENT = {
    "client_num_ticks": 100,
    "client_lag_p50_s": 0.0002,
    "client_lag_p99_s": 0.002,
    # six requests, each 2.31 s in the system, in a run of 4 s
    "client_mean_in_flight": 6 * 2.31 / 4,
}


def good_run(make: Any, **changes: Any) -> Any:
    requests = [make.request(request_id=f"request-{i}", sent_s=0.2) for i in range(6)]
    return make.run(requests, **({"step_stats": {"num_steps": 5.0, **CLIENT}} | changes))


def with_first(run: Any, **changes: Any) -> Any:
    return replace(run, requests=(replace(run.requests[0], **changes), *run.requests[1:]))


def verdicts(runs: list[Any], load: LoadSpec = LOAD) -> dict[str, bool]:
    return {check.name: check.passed for check in validity.check_cell(load, runs)}


def detail(runs: list[Any], name: str) -> str:
    (check,) = (c for c in validity.check_cell(LOAD, runs) if c.name == name)
    return check.detail


def failed(runs: list[Any], load: LoadSpec = LOAD) -> set[str]:
    return {name for name, passed in verdicts(runs, load).items() if not passed}


def test_a_good_cell_passes_every_check(make):
    runs = [good_run(make), good_run(make)]
    assert failed(runs) == set()
    assert set(verdicts(runs)) == {
        "requests-served",
        "output-length",
        "prompt-length",
        "finish-reasons",
        "token-counts",
        "warm-up",
        "first-request",
        "cache-state",
        "prompt-source",
        "reasoning",
        "client-lag",
        "coordinated-omission",
        "arrival-rate",
        "parallelism",
        "start-burst",
        "samples",
        "spread",
        "drift",
        "machine",
        "littles-law",
        "steady-window",
    }


def test_a_failed_request_is_named(make):
    runs = [good_run(make), with_first(good_run(make), error="OSError: gone")]
    assert failed(runs) == {"requests-served"}
    assert detail(runs, "requests-served") == (
        "11 of 12 requests served; first error: OSError: gone"
    )


def test_a_cell_where_everything_failed_is_invalid(make):
    run = good_run(make)
    run = replace(run, requests=tuple(replace(r, error="x", done_s=None) for r in run.requests))
    assert {"requests-served", "output-length", "samples"} <= failed([run])


def test_an_early_stop_is_found(make):
    run = with_first(good_run(make), num_output_tokens=2, token_counts=(1, 1), finish_reason="stop")
    assert failed([run]) == {"output-length", "finish-reasons"}
    assert detail([run], "output-length") == "1 of 6 have 2 to 2 tokens, not 3"
    assert detail([run], "finish-reasons") == "5 of 6 ended by length; others by stop"


def test_silent_truncation_of_the_prompt_is_found(make):
    assert failed([with_first(good_run(make), num_prompt_tokens=4)]) == {"prompt-length"}


def test_missing_warmup_is_found(make):
    runs = [good_run(make), good_run(make, num_warmup_requests=0)]
    assert failed(runs) == {"warm-up"}
    assert failed(runs, replace(LOAD, warmup_requests=0)) == set()


@pytest.mark.parametrize(
    ("lags", "valid"),
    [
        ({"client_lag_p50_s": 0.01 * 2.3 - 0.001}, True),  # end to end takes 2.3 s
        ({"client_lag_p50_s": 0.01 * 2.3 + 0.001}, False),
        ({"client_lag_p99_s": 0.05 * 2.3 - 0.001}, True),
        ({"client_lag_p99_s": 0.05 * 2.3 + 0.001}, False),
    ],
)
def test_client_lag_has_limits(make, lags, valid):
    run = good_run(make, step_stats=CLIENT | lags)
    assert verdicts([good_run(make), run])["client-lag"] is valid


@pytest.mark.parametrize(("lag_s", "valid"), [(0.0009, True), (0.0011, False)])
def test_a_lag_below_a_millisecond_never_matters(make, lag_s, valid):
    quick = [make.request(token_times_s=(0.21, 0.211, 0.212)) for _ in range(6)]
    stats = {"client_num_ticks": 100, "client_lag_p50_s": lag_s, "client_lag_p99_s": lag_s}
    run = make.run(quick, step_stats=stats | {"client_mean_in_flight": 6 * 0.022 / 4})
    assert verdicts([run])["client-lag"] is valid


def test_too_few_samples_for_a_median(make):
    run = good_run(make)
    run = replace(run, requests=run.requests[:5])
    assert "samples" in failed([run])
    assert detail([run], "samples") == "5 requests support no percentile; p50 needs 6"
    assert detail([good_run(make)] * 5, "samples") == "30 requests support percentiles up to p90"


def test_spread_warns_and_does_not_fail(make):
    slow = good_run(make)
    slow = replace(
        slow, requests=tuple(replace(r, last_token_s=r.last_token_s + 1) for r in slow.requests)
    )
    assert verdicts([good_run(make), slow])["spread"] is True
    assert detail([good_run(make), slow], "spread") == (
        "TPOT varies by 35.4% between 2 runs: above 10%, a noisy machine"
    )
    assert detail([good_run(make)] * 3, "spread") == "TPOT varies by 0.0% between 3 runs"
    assert "unknown" in detail([good_run(make)], "spread")


def test_tokens_that_come_all_at_once_have_no_spread(make):
    runs = [with_all(good_run(make), last_token_s=1.0)] * 5
    assert verdicts(runs)["spread"] is verdicts(runs)["drift"] is True
    assert detail(runs, "spread") == "no TPOT above 0: the spread between runs is unknown"


@pytest.mark.parametrize(("factor", "valid"), [(1.04, True), (0.96, True), (1.06, False)])
def test_littles_law_holds_within_five_percent(make, factor, valid):
    stats = CLIENT | {"client_mean_in_flight": factor * CLIENT["client_mean_in_flight"]}
    runs = [good_run(make), good_run(make, step_stats=stats)]
    assert verdicts(runs)["littles-law"] is valid


def test_a_lost_request_breaks_littles_law(make):
    run = good_run(make)
    assert "littles-law" in failed([replace(run, requests=run.requests[1:])])


@pytest.mark.parametrize("stats", [{}, {"client_num_ticks": 3, "client_mean_in_flight": 99.0}])
def test_what_could_not_be_observed_is_said(make, stats):
    assert detail([good_run(make, step_stats=stats)], "littles-law") == ("too short to be observed")


FIXED = LengthSpec("fixed", 10, 10, 10)
WORKLOAD = WorkloadSpec(prompt=FIXED, output=FIXED)


def with_workload(**changes: Any) -> LoadSpec:
    return replace(LOAD, workload=replace(WORKLOAD, **changes))


def with_all(run: Any, **changes: Any) -> Any:
    return replace(run, requests=tuple(replace(r, **changes) for r in run.requests))


def test_each_request_may_ask_for_its_own_length(make):
    run = with_all(good_run(make), max_tokens=3, num_prompt_tokens_sent=10)
    load = replace(with_workload(), output_tokens=77, prompt_tokens=77)
    assert failed([run], load) == set()
    assert failed([with_first(run, max_tokens=4)], load) == {"output-length"}
    assert failed([with_first(run, num_prompt_tokens_sent=12)], load) == {"prompt-length"}


def test_outputs_that_may_end_early_are_only_too_long(make):
    load = with_workload(ignore_eos=False)
    run = with_all(good_run(make), max_tokens=3, num_prompt_tokens_sent=10)
    early = with_first(run, num_output_tokens=2, token_counts=(1, 1), finish_reason="stop")
    assert failed([early], load) == set()
    assert failed([with_first(run, max_tokens=2)], load) == {"output-length"}
    odd = with_first(run, finish_reason="content_filter")
    assert failed([odd], load) == {"finish-reasons"}


@pytest.mark.parametrize(("extra", "valid"), [(0, True), (30, True), (65, False), (-1, False)])
def test_a_template_may_add_the_same_to_every_prompt(make, extra, valid):
    run = with_all(good_run(make), num_prompt_tokens=1000 + extra, num_prompt_tokens_sent=1000)
    assert verdicts([run])["prompt-length"] is valid


@pytest.mark.parametrize(("tokens", "valid"), [(1019, True), (1021, False), (979, False)])
def test_prompts_may_be_tokenized_a_little_differently(make, tokens, valid):
    run = with_all(good_run(make), num_prompt_tokens=1000, num_prompt_tokens_sent=1000)
    assert verdicts([with_first(run, num_prompt_tokens=tokens)])["prompt-length"] is valid


def test_counts_that_were_assumed_or_do_not_add_up_are_found(make):
    run = good_run(make)
    assert failed([with_first(run, counted_by="events")]) == {"token-counts"}
    assert failed([with_first(run, counted_by="client")]) == set()
    assert failed([with_first(run, token_counts=(1, 1, 2))]) == {"token-counts"}


def slow_start(make: Any) -> Any:
    slow = with_first(
        good_run(make), sent_s=0.0, scheduled_s=0.0, first_token_s=7.0, last_token_s=8.5
    )
    slow = replace(
        slow,
        requests=(replace(slow.requests[0], token_times_s=(7.0, 7.7, 8.5)), *slow.requests[1:]),
    )
    stats = slow.step_stats | {"client_mean_in_flight": 6 * 2.31 / 4}
    return replace(slow, step_stats=stats)


def test_a_slow_start_is_found_if_half_of_the_runs_have_it(make):
    slow = slow_start(make)
    assert "first-request" in failed([slow, good_run(make)])
    assert "first-request" not in failed([slow, good_run(make), good_run(make)])
    assert "8.75" in detail([slow], "first-request")  # 7 s against 0.8 s


@pytest.mark.parametrize(("of_first", "valid"), [(0, True), (64, False)])
def test_a_first_request_may_compute_what_the_others_find_in_the_cache(make, of_first, valid):
    run = with_first(with_all(slow_start(make), num_cached_tokens=64), num_cached_tokens=of_first)
    assert verdicts([run])["first-request"] is valid


def test_a_warm_cache_that_was_declared_cold_is_found(make):
    def hits(count: int) -> Any:
        return with_all(
            good_run(make),
            num_prompt_tokens=1000,
            num_prompt_tokens_sent=1000,
            num_cached_tokens=count,
        )

    assert verdicts([hits(10)])["cache-state"]
    assert not verdicts([hits(11)])["cache-state"]
    assert verdicts([hits(500)], with_workload(prefix_groups=2))["cache-state"]
    assert verdicts([hits(500)], with_workload(turns=3))["cache-state"]
    assert verdicts([hits(500)], with_workload(unique_prompts=False))["cache-state"]
    counters = {"num_prompt_tokens": 60.0, "num_prefix_hit_tokens": 6.0}
    run = good_run(make, step_stats={**CLIENT, **counters})
    assert failed([run]) == {"cache-state"}
    assert "10.0%" in detail([run], "cache-state")


def test_a_request_without_a_count_among_others_with_one_found_nothing(make):
    run = with_all(good_run(make), num_prompt_tokens=1000, num_prompt_tokens_sent=1000)
    assert "not reported" in detail([run], "cache-state")
    run = with_first(run, num_cached_tokens=600)
    assert not verdicts([run])["cache-state"]
    assert "10.0% of the prompt tokens" in detail([run], "cache-state")


@pytest.mark.parametrize(
    ("emptied", "valid", "said"),
    [
        (True, True, "0 of 3 runs on a used cache"),
        (None, True, "0 of 3 runs on a used cache, unknown in 2 of 3 runs"),
        (False, False, "2 of 3 runs on a used cache"),
    ],
)
def test_a_used_cache_that_reports_nothing_is_not_cold(make, emptied, valid, said):
    runs = [good_run(make, cache_emptied=state) for state in (True, emptied, emptied)]
    assert verdicts(runs)["cache-state"] is valid
    assert detail(runs, "cache-state") == f"declared cold; hits are not reported; {said}"


def test_random_tokens_and_speculation_do_not_go_together(make):
    drafts = good_run(make, step_stats={**CLIENT, "num_draft_tokens": 9.0})
    random_tokens = with_workload(source="random tokens")
    run = with_all(drafts, num_prompt_tokens_sent=10)
    assert failed([run], random_tokens) == {"prompt-source"}
    assert failed([run], with_workload()) == set()
    plain = with_all(good_run(make), num_prompt_tokens_sent=10)
    assert failed([plain], random_tokens) == set()


@pytest.mark.parametrize(("lag_s", "valid"), [(0.02, True), (0.03, False)])
def test_a_queue_in_the_client_is_found(make, lag_s, valid):
    run = with_all(good_run(make), sent_s=0.2 + lag_s)  # end to end takes 2.3 s
    assert verdicts([run])["coordinated-omission"] is valid


@pytest.mark.parametrize(("stretch", "valid"), [(1.04, True), (1.07, False), (0.94, False)])
def test_an_open_loop_keeps_its_rate(make, stretch, valid):
    requests = [
        make.request(scheduled_s=i / 10, sent_s=stretch * i / 10, token_times_s=(9.0, 9.5, 10.0))
        for i in range(6)
    ]
    load = replace(LOAD, kind="poisson", rate=10.0)
    run = make.run(requests, duration_s=10.0)
    assert verdicts([run], load)["arrival-rate"] is valid
    assert verdicts([run])["arrival-rate"]  # a closed loop has no rate


def test_a_server_with_a_single_slot_is_found(make):
    def request(start: float, first: float) -> Any:
        times = tuple(first + 0.1 * i for i in range(8))
        return make.request(scheduled_s=start, sent_s=start, token_times_s=times, done_s=times[-1])

    alone = make.run([request(0.0, 0.1 + i) for i in range(4)])
    together = make.run([request(0.0, 0.1 + 0.5 * i) for i in range(4)])
    assert not verdicts([alone])["parallelism"]
    assert verdicts([together])["parallelism"]
    one_by_one = make.run([request(float(i), 0.1 + i) for i in range(4)])  # nobody waited
    assert verdicts([one_by_one])["parallelism"]


def test_the_start_of_a_closed_loop_is_told_apart(make):
    assert detail([good_run(make)], "start-burst") == (
        "33% of the requests started together: TTFT p50 800 ms, of the later ones 800 ms"
    )


@pytest.mark.parametrize(("slower", "valid"), [(0.02, False), (0.01, True), (0.0, True)])
def test_runs_that_become_slower_are_found(make, slower, valid):
    runs = []
    for i in range(5):
        times = tuple(0.2 + t * (1 + slower * i) for t in (0.8, 1.3, 2.3))
        requests = [make.request(sent_s=0.2, token_times_s=times) for _ in range(6)]
        runs.append(make.run(requests, repeat=i, started_at=f"2026-01-01T00:0{i}:00.000+00:00"))
    assert verdicts(runs)["drift"] is valid
    assert verdicts(runs[:4])["drift"]  # four runs cannot show it


@pytest.mark.parametrize(
    ("before", "after", "valid"),
    [
        (MachineState(2000.0, 60.0, False), MachineState(1900.0, 80.0, False), True),
        (MachineState(2000.0), MachineState(1700.0), False),
        (MachineState(2000.0, None, False), MachineState(2000.0, None, True), False),
        (MachineState(), MachineState(), True),
        (None, None, True),
    ],
)
def test_a_machine_that_slows_down_is_found(make, before, after, valid):
    run = good_run(make, machine_before=before, machine_after=after)
    assert verdicts([run])["machine"] is valid


def test_the_steady_window_is_told(make):
    assert detail([good_run(make)], "steady-window") == "58% of the run, p50 of the runs"
