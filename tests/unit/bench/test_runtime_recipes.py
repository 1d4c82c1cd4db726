"""The recipes that show the runtime's techniques, small, on a random model: each shows its own."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from llmopt.bench.engine_settings import engine_problems
from llmopt.bench.observer import SilentObserver
from llmopt.bench.sweep import run_recipe
from llmopt.recipe.engine import EngineSettings, Speculation
from llmopt.recipe.load import load_recipe
from llmopt.recipe.loads import Lengths
from llmopt.recipe.schema import Load, Recipe
from llmopt.report.report import make_report
from llmopt.results.schema import CellResult
from llmopt.results.store import read_results

pytestmark = pytest.mark.usefixtures("known_ceilings")

RECIPES = Path(__file__).parents[3] / "recipes"
Measure = Callable[..., list[CellResult]]


@pytest.fixture
def measure(tiny_model_path: Path, tmp_path: Path) -> Measure:
    """Run a shipped recipe on the tiny model, with loads and engines made small."""

    def run(
        name: str,
        small: Callable[[Load], Load],
        engine: Callable[[EngineSettings], EngineSettings] = lambda settings: settings,
    ) -> list[CellResult]:
        def tiny(target: Any) -> Any:
            own = None if target.engine is None else engine(target.engine)
            return replace(target, model=str(tiny_model_path), dtype="float32", engine=own)

        recipe: Recipe = load_recipe(RECIPES / f"{name}.yaml", engine_problems)
        recipe = replace(
            recipe,
            base=tiny(recipe.base),
            targets=tuple(map(tiny, recipe.targets)),
            loads=tuple(map(small, recipe.loads)),
            repeats=1,
        )
        results, errors = read_results(
            run_recipe(recipe, tmp_path / "out", tmp_path / "work", SilentObserver())
        )
        assert errors == []
        assert [result.error for result in results] == [None] * len(results)
        # so short a run is no valid measurement of time; of what is counted it is
        return [replace(result, validity=()) for result in results]

    return run


def stats(result: CellResult) -> dict[str, float]:
    return result.runs[0].step_stats


def tokens(result: CellResult) -> int:
    return sum(request.num_output_tokens for request in result.runs[0].requests)


def test_continuous_batching_needs_fewer_steps_than_static(measure: Measure) -> None:
    def small(load: Load) -> Load:
        assert isinstance(load.output_tokens, Lengths)
        output = replace(load.output_tokens, mean=6.0, std=12.0, high=48)
        return replace(load, num_requests=32, output_tokens=output)

    results = measure("runtime-batching", small)[:2]
    static, continuous = results
    assert (static.target, continuous.target) == ("static", "continuous")
    assert tokens(static) == tokens(continuous)
    assert stats(static)["num_steps"] > 1.5 * stats(continuous)["num_steps"]
    assert stats(static)["num_preemptions"] == stats(continuous)["num_preemptions"] == 0
    notes = make_report(results).notes
    assert "Engine of static: policy static." in notes
    assert "Engine of continuous: policy fcfs." in notes


def test_paging_wastes_less_than_rows_of_the_full_length(measure: Measure) -> None:
    def small(load: Load) -> Load:
        prompt = Lengths("lognormal", 96, 16, mean=48.0, std=24.0)
        output = Lengths("lognormal", 64, 8, mean=24.0, std=24.0)
        return replace(load, num_requests=10, prompt_tokens=prompt, output_tokens=output)

    rows = make_report(measure("runtime-paging", small)).rows
    figures = {row.target: row.engine for row in rows if row.engine is not None}
    waste = {name: each.waste_share for name, each in figures.items()}
    assert 0 < waste["paged-16"] < waste["paged-32"] < waste["reserved"]
    assert waste["paged-16-int8"] == pytest.approx(waste["paged-16"], abs=0.02)
    for each in figures.values():
        assert 0 < each.max_tokens_waste_share < each.model_len_waste_share < 1
    assert figures["paged-16-int8"].peak_kv_bytes < figures["paged-16"].peak_kv_bytes / 3


def test_a_shared_prefix_is_found_by_all_but_the_first(measure: Measure) -> None:
    def small(load: Load) -> Load:
        workload = replace(load.workload, prefix_tokens=160)
        small = replace(load, num_requests=4, prompt_tokens=176, output_tokens=4)
        return replace(small, workload=workload)

    results = measure("runtime-prefix", small)
    off, on = results
    assert off.summary.cache_hit_rate == 0
    assert on.summary.cache_hit_rate == 3 * 160 / (4 * 176)
    assert [request.num_cached_tokens for request in on.runs[0].requests] == [0, 160, 160, 160]
    assert stats(on)["num_scheduled_tokens"] == 4 * (176 + 3) - 3 * 160
    (note,) = (n for n in make_report(results).notes if n.startswith("cache-on at"))
    assert "TTFT gain" in note


def test_the_cache_of_a_window_stays_flat(measure: Measure) -> None:
    lengths = {256: 64, 512: 128, 1024: 256, 2048: 400}

    def shrink(settings: EngineSettings) -> EngineSettings:
        window = settings.attention_window and settings.attention_window // 8
        return replace(settings, max_prefill_chunk=16, attention_window=window)

    results = measure(
        "runtime-window",
        lambda load: replace(load, num_requests=1, prompt_tokens=lengths[load.prompt_tokens]),
        shrink,
    )
    peaks: dict[str, list[float]] = {}
    for result in results:
        peaks.setdefault(result.target, []).append(stats(result)["peak_kv_bytes"])
    block_bytes = 2 * 2 * 16 * 16 * 4 * 2  # K and V, heads, head size, tokens, float32, layers
    assert peaks["full"] == [-(-(n + 31) // 16) * block_bytes for n in lengths.values()]
    window, sinks = peaks["window-256"], peaks["sinks-4+256"]
    assert len(set(window[1:])) == len(set(sinks[1:])) == 1
    assert sinks[-1] == window[-1] + block_bytes
    assert sinks[-1] < peaks["full"][-1] / 4
    assert all(stats(result)["num_freed_window_blocks"] > 0 for result in results[-2:])


def test_every_proposer_is_used_and_gives_tokens_in_fewer_steps(measure: Measure) -> None:
    def shrink(settings: EngineSettings) -> EngineSettings:
        said = settings.given_speculation()
        assert said is not None
        said["proposer"] = said["proposer"].replace("layers:10", "layers:1")
        # adapting depends on the clock
        return replace(settings, speculation=Speculation(**said, adaptive=False))

    results = measure(
        "runtime-speculation",
        lambda load: replace(load, num_requests=3, prompt_tokens=64, output_tokens=96),
        shrink,
    )
    plain, *guessing = results
    assert stats(plain)["num_draft_tokens"] == 0
    for result in guessing:
        assert tokens(result) == tokens(plain)
        assert stats(result)["num_accepted_tokens"] > 0, result.target
        assert stats(result)["num_steps"] < stats(plain)["num_steps"]
        assert result.summary.acceptance_rate > 0
    rows = {row.target: row.engine for row in make_report(results).rows}
    assert rows["plain"].tokens_per_step is None
    assert rows["self-8bit"].tokens_per_step > 1
    assert len(rows["self-8bit"].acceptance_by_position) == 5
    assert rows["self-8bit"].acceptance_by_position[0] > 0.5
    (note,) = (n for n in make_report(results).notes if n.startswith("self-8bit at"))
    assert "tokens per step" in note
