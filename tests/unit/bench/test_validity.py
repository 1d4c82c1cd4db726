from dataclasses import replace
from typing import Any

import pytest

from llmopt.bench import validity
from llmopt.results.schema import LoadSpec

LOAD = LoadSpec(concurrency=2, num_requests=6, prompt_tokens=10, output_tokens=3, warmup_requests=1)
CLIENT = {
    "client_num_ticks": 100,
    "client_lag_p50_s": 0.0002,
    "client_lag_p99_s": 0.002,
    # six requests, each 2.31 s in the system, in a run of 4 s
    "client_mean_in_flight": 6 * 2.31 / 4,
}


def good_run(make: Any, **changes: Any) -> Any:
    requests = [make.request(request_id=f"request-{i}") for i in range(6)]
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
        "warm-up",
        "client-lag",
        "samples",
        "spread",
        "littles-law",
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
    run = with_first(good_run(make), num_output_tokens=2)
    assert failed([run]) == {"output-length"}
    assert detail([run], "output-length") == "1 of 6 have 2 to 2 tokens, not 3"


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
