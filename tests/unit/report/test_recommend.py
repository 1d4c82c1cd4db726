import itertools
import json
from collections.abc import Callable
from dataclasses import replace

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from llmopt.bench.percentiles import summarize_samples
from llmopt.bench.slo import parse_slo
from llmopt.report.bounds import Bounds, Check
from llmopt.report.recommend import Recommendation, recommend
from llmopt.report.recommend_text import recommendation_lines, recommendation_values
from llmopt.report.rows import make_rows
from llmopt.results.schema import CellResult, RequestRecord

MakeResult = Callable[..., CellResult]


def with_runs(result: CellResult, *runs: float) -> CellResult:
    assert result.summary is not None
    return replace(result, summary=replace(result.summary, run_output_throughput=runs))


def with_memory(result: CellResult, num_bytes: int) -> CellResult:
    assert result.summary is not None
    return replace(result, summary=replace(result.summary, peak_memory_bytes=num_bytes))


def with_ttft(result: CellResult, ttft_s: float, high_ms: float | None) -> CellResult:
    """Requests of which 97 % take `ttft_s`, so that their p95 is that and its interval ends at
    `high_ms`, where the others are; None: one request a run, too few for an interval.
    """
    latencies = [ttft_s] if high_ms is None else [ttft_s] * 97 + [high_ms / 1000] * 3
    requests = tuple(
        RequestRecord("r", 128, 2, 0.0, 0.0, s, s + 1, s + 1, (s, s + 1), (1, 1), "length")
        for s in latencies
    )
    assert result.summary is not None
    assert len(result.runs) == 3
    runs = tuple(replace(run, requests=requests) for run in result.runs)
    summary = replace(result.summary, ttft_ms=summarize_samples([1000 * s for s in 3 * latencies]))
    return replace(result, runs=runs, summary=summary)


def the_answer(results: list[CellResult], bounds: Bounds) -> Recommendation:
    (found,) = recommend(results, make_rows(results), bounds)
    return found


def ship(results: list[CellResult], bounds: Bounds) -> str | None:
    found = the_answer(results, bounds).ship
    return found and found.row.target


@pytest.fixture
def at_once(make_result: MakeResult) -> list[CellResult]:
    return [make_result(name) for name in ("fp32", "bf16", "gptq-w8g64", "gptq-w4g64")]


@pytest.mark.parametrize(
    ("max_kld", "expected", "runner_up"),
    [
        (1.0, "gptq-w4g64", "gptq-w8g64"),
        (0.01, "gptq-w8g64", "bf16"),
        (0.001, "bf16", "fp32"),
        (0.0, "fp32", None),
    ],
)
def test_the_fastest_within_the_bound_is_shipped(
    at_once: list[CellResult], max_kld: float, expected: str, runner_up: str | None
) -> None:
    found = the_answer(at_once, Bounds(max_kld=max_kld))
    assert found.ship is not None
    assert found.ship.row.target == expected
    assert (found.runner_up and found.runner_up.row.target) == runner_up
    assert len(found.tied) == 1


def test_among_cells_that_runs_cannot_tell_apart_the_better_one_is_shipped(
    make_result: MakeResult,
) -> None:
    fast = with_runs(make_result("rtn-w4g64"), 70, 71, 72)
    close = with_runs(make_result("gptq-w4g64"), 71, 69, 71)
    found = the_answer([fast, close], Bounds(max_kld=1.0))
    assert found.ship is not None
    assert found.runner_up is not None
    assert (found.ship.row.target, found.runner_up.row.target) == ("gptq-w4g64", "rtn-w4g64")
    text = "\n".join(recommendation_lines([found]))
    assert "not distinguishable from rtn-w4g64 on llmopt 0.1.0 at c1" in text
    assert recommendation_values(found)["is_distinguishable"] is False


def test_pairs_of_runs_tell_apart_what_intervals_do_not(make_result: MakeResult) -> None:
    """Runs that took turns share the state of the machine."""
    fast = with_runs(make_result("rtn-w4g64"), 60, 80, 100)
    slow = with_runs(make_result("gptq-w4g64"), 54, 72, 90)
    assert ship([fast, slow], Bounds(max_kld=1.0)) == "rtn-w4g64"
    shuffled = with_runs(make_result("gptq-w4g64"), 90, 54, 72)
    assert ship([fast, shuffled], Bounds(max_kld=1.0)) == "gptq-w4g64"


def test_a_single_run_decides_nothing(make_result: MakeResult) -> None:
    fast = with_runs(make_result("rtn-w4g64"), 100)
    slow = with_runs(make_result("gptq-w4g64"), 50)
    assert ship([fast, slow], Bounds(max_kld=1.0)) == "gptq-w4g64"


def test_nothing_that_was_not_measured_keeps_a_bound(make_result: MakeResult) -> None:
    unknown = replace(make_result("rtn-w4g64"), quality=None)
    found = the_answer([unknown], Bounds(max_kld=1.0, max_memory_bytes=10))
    assert found.ship is None
    text = "\n".join(recommendation_lines([found]))
    assert "KLD was not measured" in text
    assert "peak memory was not measured" in text


def test_what_is_nearest_is_named_with_what_it_misses(at_once: list[CellResult]) -> None:
    quantized = at_once[1:]
    found = the_answer(quantized, Bounds(max_kld=0.0001))
    assert found.ship is None
    assert found.nearest is not None
    assert found.nearest.row.target == "bf16"
    text = "\n".join(recommendation_lines([found]))
    assert "None of 3 cells keeps every bound." in text
    assert "KLD 0.00041 [0.000381, 0.000443] nats > 0.0001 nats" in text


def test_a_sure_cell_goes_before_a_faster_unsure_one(make_result: MakeResult) -> None:
    sure = with_ttft(make_result("bf16"), 0.2, 250.0)
    unsure = with_ttft(make_result("gptq-w8g64"), 0.2, 350.0)
    bounds = Bounds(slo=parse_slo("ttft_p95<300ms"))
    assert ship([sure, unsure], bounds) == "bf16"
    assert ship([unsure], bounds) == "gptq-w8g64"
    lines = "\n".join(recommendation_lines([the_answer([unsure], bounds)]))
    assert "ttft p95 200 [200, 350] ms <= 300 ms, not surely." in lines
    few = with_ttft(make_result("bf16"), 0.2, None)
    assert "too few samples" in "\n".join(recommendation_lines([the_answer([few], bounds)]))
    late = with_ttft(make_result("bf16"), 0.4, 410.0)
    assert ship([late], bounds) is None


def test_any_percentile_has_an_interval(make_result: MakeResult) -> None:
    sure = with_ttft(make_result("bf16"), 0.2, 250.0)
    for percent in ("p80", "p90"):
        (found,) = (
            line
            for line in recommendation_lines(
                [the_answer([sure], Bounds(slo=parse_slo(f"ttft_{percent}<300ms")))]
            )
            if percent in line
        )
        assert f"ttft {percent} 200 [200, 200] ms <= 300 ms" in found


def test_memory_is_a_bound(make_result: MakeResult) -> None:
    small = with_memory(make_result("gptq-w8g64"), 2 * 10**9)
    large = with_memory(make_result("rtn-w4g64"), 9 * 10**9)
    assert ship([small, large], Bounds(max_memory_bytes=8 * 10**9)) == "gptq-w8g64"


def test_quality_that_was_measured_beside_the_load_counts(make_result: MakeResult) -> None:
    served = replace(make_result("bf16"), quality=None)
    alone = replace(make_result("bf16"), cell_id="q", load=None, runs=(), summary=None)
    assert ship([served], Bounds(max_kld=0.01)) is None
    assert ship([served, alone], Bounds(max_kld=0.01)) == "bf16"


def test_without_a_load_the_smallest_is_shipped(methods_results: list[CellResult]) -> None:
    found = the_answer(methods_results, Bounds(max_kld=0.01))
    assert found.by == "size"
    assert found.ship is not None
    assert found.ship.row.target == "gptq-w8g64"  # all are of one size, and this loses least
    assert len(found.tied) > 3


def test_other_lengths_models_and_machines_are_answered_apart(make_result: MakeResult) -> None:
    result = make_result("bf16")
    assert result.load is not None
    assert result.model is not None
    others = [
        result,
        replace(result, load=replace(result.load, prompt_tokens=2048)),
        replace(result, model=replace(result.model, name="other")),
        replace(result, environment=replace(result.environment, device="Other CPU")),
    ]
    assert len(recommend(others, make_rows(others), Bounds(max_kld=1.0))) == 4


def test_an_invalid_row_is_not_shipped(make_result: MakeResult) -> None:
    failed = make_result("bf16", summary=None, error="gone")
    assert recommend([failed], make_rows([failed]), Bounds(max_kld=1.0)) == []
    assert list(recommendation_lines([])) == [
        "Nothing that could be recommended was measured: no row is valid."
    ]


def test_as_json(at_once: list[CellResult]) -> None:
    document = json.loads(json.dumps(recommendation_values(the_answer(at_once, Bounds(max_kld=1)))))
    assert document["ship"]["target"] == "gptq-w4g64"
    assert document["ship"]["checks"][0]["standing"] == "keeps"
    assert document["num_within_bounds"] == 4


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(cells=st.lists(st.tuples(st.floats(1, 1e3), st.floats(1e-6, 1)), min_size=1, max_size=6))
def test_what_is_shipped_keeps_the_bound_and_nothing_is_surely_faster(
    make_result: MakeResult, cells: list[tuple[float, float]]
) -> None:
    results = [built(make_result, i, speed, kld) for i, (speed, kld) in enumerate(cells)]
    found = the_answer(results, Bounds(max_kld=0.1))
    within = [speed for speed, kld in cells if kld <= 0.1]
    assert (found.ship is None) == (not within)
    if found.ship is not None:
        assert found.ship.kld <= 0.1
        pool = [speed for speed, kld in cells if 1.08 * kld <= 0.1] or within
        assert found.ship.gain.value >= 0.9 * max(pool)


def built(make_result: MakeResult, index: int, speed: float, kld: float) -> CellResult:
    """Three runs within 3 %."""
    result = with_runs(make_result("bf16"), 0.98 * speed, speed, 1.01 * speed)
    assert result.quality is not None
    quality = replace(result.quality, kld_mean=kld, kld_mean_ci=(0.93 * kld, 1.08 * kld))
    return replace(result, cell_id=f"c{index}", target=f"t{index}", quality=quality)


def test_standings_of_a_value_and_its_interval() -> None:
    ends = itertools.product([(0.5, 0.9), (0.5, 1.1)], [False, True])
    standings = [Check("x", 0.8, 1.0, "", e, is_lower_bound=low).standing for e, low in ends]
    assert standings == ["keeps", "unsettled", "unsettled", "unsettled"]
    assert Check("x", 1.2, 1.0, "").standing == "misses"
    assert Check("x", None, 1.0, "").standing == "unknown"
    assert Check("x", 0.8, 1.0, "", has_interval=False).standing == "unsettled"
    assert Check("x", 0.1, 0.0, "").excess == float("inf")
