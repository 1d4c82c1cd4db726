"""Every known trap of benchmarks, sprung: exactly the checks that are meant to find it fail.

T1 to T24 as the field has reported them. Two are no faults of a run but things to know of it (the
burst at the start, the drain at the end), which the checks say and do not fail.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest

from llmopt.bench.audit import audit_file
from llmopt.bench.validity import check_cell
from llmopt.results.schema import (
    LengthSpec,
    LoadSpec,
    MachineState,
    RequestRecord,
    RunRecord,
    SloTerm,
    ValidityCheck,
    WorkloadSpec,
)

LOAD = LoadSpec(2, 8, 100, 10, 1)
NUM_PAIRS, PAIR_S, TTFT_S, TPOT_S = 4, 1.5, 0.4, 0.1

Cell = tuple[LoadSpec, list[RunRecord]]


def request(start_s: float, ttft_s: float = TTFT_S, **changes: Any) -> RequestRecord:
    """One request of 100 prompt and 10 output tokens."""
    times = tuple(start_s + ttft_s + TPOT_S * i for i in range(10))
    fields: dict[str, Any] = {
        "num_prompt_tokens": 100,
        "num_prompt_tokens_sent": 100,
        "num_output_tokens": 10,
        "max_tokens": 10,
        "scheduled_s": start_s,
        "sent_s": start_s,
        "first_token_s": times[0],
        "last_token_s": times[-1],
        "done_s": times[-1],
        "token_times_s": times,
        "token_counts": (1,) * 10,
        "finish_reason": "length",
    }
    return RequestRecord("request", **(fields | changes))


def run_of(requests: Sequence[RequestRecord], repeat: int = 0, **changes: Any) -> RunRecord:
    """A run of these, as a client on time would have seen it."""
    end_s = max(r.done_s or 0.0 for r in requests)
    in_flight = sum((r.done_s or 0.0) - r.scheduled_s for r in requests) / end_s
    stats = {
        "client_num_ticks": 600.0,
        "client_lag_p50_s": 1e-4,
        "client_lag_p99_s": 5e-4,
        "client_mean_in_flight": in_flight,
    }
    stats |= changes.pop("step_stats", {})
    fields = {"cache_emptied": True, "num_warmup_requests": 1} | changes
    started_at = f"2026-01-01T00:{repeat:02d}:00.000+00:00"
    return RunRecord(repeat, started_at, 0, end_s, tuple(requests), stats, **fields)


def requests_of(
    change: Callable[[int, RequestRecord], RequestRecord] = lambda _, r: r,
) -> list[RequestRecord]:
    """Eight requests, two at a time; `change` makes them what they should not be."""
    starts = [pair * PAIR_S + 0.01 * slot for pair in range(NUM_PAIRS) for slot in range(2)]
    return [change(i, request(start)) for i, start in enumerate(starts)]


def cell(
    change: Callable[[int, RequestRecord], RequestRecord] = lambda _, r: r,
    load: LoadSpec = LOAD,
    **changes: Any,
) -> Cell:
    return load, [run_of(requests_of(change), repeat, **changes) for repeat in range(2)]


def every(**changes: Any) -> Callable[[int, RequestRecord], RequestRecord]:
    return lambda _, r: replace(r, **changes)


def some(which: Sequence[int], **changes: Any) -> Callable[[int, RequestRecord], RequestRecord]:
    return lambda i, r: replace(r, **changes) if i in which else r


def later(first: Sequence[int], extra_s: float) -> Callable[[int, RequestRecord], RequestRecord]:
    """These requests get their first token so much later, and all after it."""
    return lambda i, r: request(r.sent_s, TTFT_S + extra_s) if i in first else r


def stopped_early(_: int, r: RequestRecord) -> RequestRecord:
    return replace(
        r,
        num_output_tokens=7,
        token_times_s=r.token_times_s[:7],
        token_counts=(1,) * 7,
        last_token_s=r.token_times_s[6],
        done_s=r.token_times_s[6],
        finish_reason="stop",
    )


def with_workload(**changes: Any) -> LoadSpec:
    fixed = LengthSpec("fixed", 10, 10, 10)
    return replace(LOAD, workload=WorkloadSpec(fixed, fixed, **changes))


def one_after_another() -> Cell:
    """Two are in flight, and each is served when the one before is done."""
    alone_s = TTFT_S + 9 * TPOT_S
    starts = [alone_s * max(0, i - 1) for i in range(8)]
    requests = [request(at, alone_s * i - at + TTFT_S) for i, at in enumerate(starts)]
    return LOAD, [run_of(requests, repeat) for repeat in range(2)]


def limited_connections() -> Cell:
    """A burst of eight, of which the client sends two at a time."""
    load = replace(LOAD, kind="burst", concurrency=8)
    requests = [replace(r, scheduled_s=0.0) for r in requests_of()]
    return load, [run_of(requests, repeat) for repeat in range(2)]


def heating_up() -> Cell:
    def slower(by: float) -> list[RequestRecord]:
        def change(_: int, r: RequestRecord) -> RequestRecord:
            first = r.token_times_s[0]
            times = tuple(first + (time - first) * by for time in r.token_times_s)
            return replace(r, token_times_s=times, last_token_s=times[-1], done_s=times[-1])

        return requests_of(change)

    return LOAD, [run_of(slower(1 + 0.02 * i), i) for i in range(6)]


LAGS = {"client_lag_p50_s": 0.004, "client_lag_p99_s": 0.9}
TINY = {"client_lag_p50_s": 0.03, "client_lag_p99_s": 0.05}
THINKING = {"num_reasoning_events": 6, "first_answer_s": 99.0}

FAILING: dict[str, tuple[Cell, set[str]]] = {
    "T1 fixed prompts hit the prefix cache": (cell(every(num_cached_tokens=60)), {"cache-state"}),
    "T2 the cell before left its cache": (cell(cache_emptied=False), {"cache-state"}),
    "T3 a semaphore in the client": (
        cell(lambda _, r: replace(r, sent_s=r.scheduled_s + 0.3)),
        {"coordinated-omission"},
    ),
    "T4 events counted as tokens": (cell(every(counted_by="events")), {"token-counts"}),
    "T5 a role timed as a token": (
        cell(every(token_counts=(0, 2, *(1,) * 8))),
        {"token-counts"},
    ),
    "T6 the end of text is not ignored": (
        cell(stopped_early),
        {"output-length", "finish-reasons"},
    ),
    "T7 ignoring the end breaks the model": (
        cell(some((0, 2, 4, 6, 7), error="unexpected tokens in message", done_s=None)),
        {"requests-served"},
    ),
    "T8 a failed request left out": (cell(some((3,), error="gone")), {"requests-served"}),
    "T9 a prompt cut in silence": (cell(some((3,), num_prompt_tokens=64)), {"prompt-length"}),
    "T10 a server with one slot": (one_after_another(), {"parallelism"}),
    "T12 a busy client": (cell(step_stats=LAGS), {"client-lag"}),
    "T12 a governor": (
        cell(machine_before=MachineState(3000.0), machine_after=MachineState(2000.0)),
        {"machine"},
    ),
    "T13 too few connections": (limited_connections(), {"coordinated-omission"}),
    "T14 a model faster than its client": (cell(step_stats=TINY), {"client-lag"}),
    "T15 random prompts under speculation": (
        cell(load=with_workload(source="random tokens"), step_stats={"num_draft_tokens": 9.0}),
        {"prompt-source"},
    ),
    "T16 some first tokens are of a reasoning": (cell(some((1, 4), **THINKING)), {"reasoning"}),
    "T17 another tokenizer on the server": (
        cell(lambda i, r: replace(r, num_prompt_tokens=100 + 5 * i)),
        {"prompt-length"},
    ),
    "T18 the first call loads the model": (cell(later((0,), 4.0)), {"first-request"}),
    "T20 no warm-up": (cell(num_warmup_requests=0), {"warm-up"}),
    "T20 the first request compiles": (cell(later((0,), 3.0)), {"first-request"}),
    "T21 a machine that heats up": (heating_up(), {"drift"}),
    "T21 a machine that throttles": (
        cell(machine_after=MachineState(3000.0, 97.0, throttled=True)),
        {"machine"},
    ),
    "T23 a cold outlier moves the mean": (cell(later((0,), 9.0)), {"first-request"}),
    "T24 too few samples for a tail": (
        cell(load=replace(LOAD, slo=(SloTerm("ttft", 900.0, 95),))),
        {"samples"},
    ),
}

SAID: dict[str, tuple[Cell, str, str]] = {
    "T11 the burst at the start is in the tail": (
        cell(later((0, 1), 1.0)),
        "start-burst",
        "25% of the requests started together: TTFT p50 1.4e+03 ms, of the later ones 400 ms",
    ),
    "T16 all first tokens are of a reasoning": (
        cell(lambda _, r: replace(r, num_reasoning_events=6, first_answer_s=r.token_times_s[6])),
        "reasoning",
        "16 of 16 streams begin with a reasoning, where TTFT ends; their answers begin 600 ms later"
        " at p50",
    ),
    "T22 ramp and drain": (
        (LOAD, [run_of([*requests_of(), request(5.0, 3.0)])]),  # alone for the last 3 s of 8.9
        "steady-window",
        "65% of the run, p50 of the runs",
    ),
}


def checks_of(found: Cell) -> dict[str, ValidityCheck]:
    load, runs = found
    return {check.name: check for check in check_cell(load, runs)}


def test_without_a_trap_nothing_fails_and_everything_was_seen():
    checks = checks_of(cell())
    assert [check.name for check in checks.values() if not check.passed] == []
    unseen = ("too few", "too short", "not observed", "no request")
    assert [c.name for c in checks.values() if any(word in c.detail for word in unseen)] == [
        "drift"  # two runs
    ]


@pytest.mark.parametrize("trap", FAILING)
def test_a_trap_is_found_by_its_check_and_no_other(trap):
    found, expected = FAILING[trap]
    failed = {name for name, check in checks_of(found).items() if not check.passed}
    assert failed == expected


@pytest.mark.parametrize("trap", SAID)
def test_what_is_no_fault_is_said(trap):
    found, name, detail = SAID[trap]
    checks = checks_of(found)
    assert [check.name for check in checks.values() if not check.passed] == []
    assert checks[name].detail == detail


def test_t19_a_bare_model_is_not_a_server(tmp_path):
    path = tmp_path / "llama-bench.json"
    one = {"avg_ts": 50.0, "n_gen": 64, "samples_ts": [49.0, 50.0, 51.0], "model_type": "m"}
    path.write_text(json.dumps([one]))
    (found,) = audit_file(path)
    assert found.passed
    assert any(
        line.startswith("serving: tokenizing, sampling, the server") for line in found.missing
    )


def test_every_trap_has_its_place():
    named = {int(name[1:3]) for name in (*FAILING, *SAID)} | {19}
    assert named == set(range(1, 25))


def test_every_check_that_can_fail_is_the_answer_to_a_trap():
    """Of the others: what a noisy machine does is a warning, and two checks have tests of theirs:
    Little's law, which guards the record itself, and the rate of an open loop.
    """
    answers = {name for _, names in FAILING.values() for name in names}
    answers |= {name for _, name, _ in SAID.values()}
    assert set(checks_of(cell())) - answers == {"spread", "littles-law", "arrival-rate"}
