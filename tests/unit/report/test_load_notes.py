import math
from collections.abc import Callable
from dataclasses import replace

from llmopt.report.load_notes import load_notes
from llmopt.report.report import make_report
from llmopt.results.schema import (
    CellResult,
    LoadSpec,
    ProbeRecord,
    SearchRecord,
    SloTerm,
    StoppingRecord,
)

MakeResult = Callable[..., CellResult]

SLO = (SloTerm("ttft", 500, 95), SloTerm("tpot", 50))
LOAD = LoadSpec(8, 80, 48, 16, 2, kind="poisson", rate=3.16, slo=SLO)


def probe(rate: float, ttft_ms: float, *, backlog: bool = False) -> ProbeRecord:
    return ProbeRecord(rate, ttft_ms <= 500, backlog, rate, 6, 480, (ttft_ms, 41.2), (True,))


def notes_of(result: CellResult) -> list[str]:
    return [note for note in make_report([result]).notes if "rate" in note or "Repeats" in note]


FOUND = SearchRecord(3.16, 3.24, 2.9, (probe(2.9, 210), probe(3.16, 431), probe(3.24, 530.4)))


def test_a_search_is_shown_with_the_rates_around_it(make_result: MakeResult) -> None:
    result = replace(make_result("fp32", 1), load=LOAD, search=FOUND)
    (note,) = [note for note in notes_of(result) if "highest" in note]
    assert note.endswith(
        "highest rate that keeps ttft p95 <= 500 ms, tpot <= 50 ms: 3.16 requests/s "
        "[3.16 held at ttft 431 ms, tpot 41.2 ms, 3.24 failed at ttft 530 ms, tpot 41.2 ms; "
        "3 rates, 1440 requests]."
    )


def test_a_growing_queue_failed_requests_and_no_limit_are_told(make_result: MakeResult) -> None:
    base = replace(make_result("fp32", 1), load=LOAD)
    queue = replace(FOUND, probes=(*FOUND.probes[:2], probe(3.24, 400, backlog=True)))
    (note,) = [note for note in notes_of(replace(base, search=queue)) if "highest" in note]
    assert "tpot 41.2 ms with a growing queue; 3 rates" in note
    lost = replace(FOUND, probes=(*FOUND.probes[:2], probe(3.24, math.inf)))
    (note,) = [note for note in notes_of(replace(base, search=lost)) if "highest" in note]
    assert "3.24 failed at ttft of failed requests, tpot 41.2 ms;" in note
    open_end = replace(FOUND, failing_rate=None)
    (note,) = [note for note in notes_of(replace(base, search=open_end)) if "highest" in note]
    assert "no higher one was seen to fail; 3 rates" in note


def test_a_search_without_a_find_says_so(make_result: MakeResult) -> None:
    nothing = replace(FOUND, rate=None, failing_rate=None)
    result = replace(make_result("fp32", 1), load=LOAD, search=nothing, error="no rate")
    (note,) = [note for note in notes_of(result) if "down to" in note]
    assert "no rate keeps ttft p95 <= 500 ms, tpot <= 50 ms, down to 2.9 requests/s" in note


def test_why_runs_ended_is_told_once(make_result: MakeResult) -> None:
    stopping = StoppingRecord(0.03, 20, True, {"tpot_p50": 0.01}, "after 5 runs all is well")
    results = [replace(make_result(name, 1), stopping=stopping) for name in ("fp32", "bf16")]
    notes = make_report(results).notes
    assert [note for note in notes if "after 5" in note] == ["Repeats: after 5 runs all is well."]
    assert list(load_notes([], str)) == []
