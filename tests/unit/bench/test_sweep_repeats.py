"""Sweeps that decide for themselves how often, and at which rate, they measure."""

import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from llmopt.bench import sweep
from llmopt.bench.observer import SilentObserver
from llmopt.data import read_text
from llmopt.recipe.schema import Base, Load, Recipe, Target
from llmopt.results.schema import CellResult
from llmopt.results.store import read_results

pytestmark = pytest.mark.usefixtures("known_ceilings", "short_texts")


@pytest.fixture
def short_texts(monkeypatch: pytest.MonkeyPatch) -> None:
    """The beginning of the bundled text, which takes less time to tokenize."""
    monkeypatch.setattr("llmopt.bench.sweep.read_text", lambda name: read_text(name)[:20_000])


@pytest.fixture
def recipe(tiny_model_path: Path) -> Recipe:
    model = str(tiny_model_path)
    return Recipe(
        name="tiny",
        base=Base(model, "float32"),
        targets=(Target("bf16", model, "bfloat16"),),
        loads=(Load(1, 3, 16, 4),),
        repeats=2,
    )


@pytest.fixture
def run(tmp_path: Path) -> Any:
    def run_recipe(recipe: Recipe, observer: Any = None) -> list[CellResult]:
        folder = tmp_path / "results"
        paths = sweep.run_recipe(recipe, folder, tmp_path / "work", observer or SilentObserver())
        results, errors = read_results(paths)
        assert errors == []
        return results

    return run_recipe


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Any:
    """A machine whose runs take as long as the test says; notes (rate, dtype, repeat) of each."""

    class Machine:
        scatter = 0.0
        interrupt_at: int | None = None

        def __init__(self) -> None:
            self.made = []
            self.chance = random.Random(0)
            self.real = sweep.measure_run

        def __call__(self, served: Any, load: Any, **rest: Any) -> Any:
            if len(self.made) == self.interrupt_at:
                raise KeyboardInterrupt
            found = self.real(served, load, **rest)
            self.made.append((load.spec.rate, str(served.model.dtype), rest["repeat"]))
            slow = self.chance.lognormvariate(0, self.scatter)
            times = tuple(0.01 * slow * (i + 1) for i in range(4))
            requests = tuple(
                replace(
                    request,
                    sent_s=request.scheduled_s,
                    first_token_s=request.scheduled_s + times[0],
                    last_token_s=request.scheduled_s + times[-1],
                    done_s=request.scheduled_s + times[-1],
                    token_times_s=tuple(request.scheduled_s + time for time in times),
                )
                for request in found.requests
            )
            return replace(found, duration_s=0.01 * slow, requests=requests)

    made = Machine()
    monkeypatch.setattr(sweep, "measure_run", made)
    return made


class Details(SilentObserver):
    def __init__(self) -> None:
        self.heard: list[str] = []

    def stage_advanced(self, done: int, total: int, detail: str) -> None:
        assert 0 <= done <= total
        self.heard.append(detail)


def test_runs_go_on_in_rounds_until_every_interval_is_narrow(recipe, run, machine):
    machine.scatter = 0.03
    observer = Details()
    results = run(replace(recipe, until_ci=0.03), observer)
    number = len(results[0].runs)
    assert 3 < number < 20
    assert [repeat for _, _, repeat in machine.made] == [i // 2 for i in range(2 * number)]
    for result in results:
        assert [run.repeat for run in result.runs] == list(range(number))
        assert result.stopping.is_settled
        assert max(result.stopping.widths.values()) <= 0.03
        assert f"after {number} runs every main number is within 3 %" == result.stopping.reason
    assert any("of at most 20: " in detail and "not 3 %" in detail for detail in observer.heard)


def test_a_fixed_number_of_runs_says_nothing_of_stopping(recipe, run, machine):
    assert [result.stopping for result in run(recipe)] == [None, None]
    assert len(machine.made) == 4


def test_an_interrupted_sweep_goes_on_to_the_same_end(recipe, run, machine):
    machine.scatter = 0.03
    machine.interrupt_at = 7
    recipe = replace(recipe, until_ci=0.03)
    with pytest.raises(KeyboardInterrupt):
        run(recipe)
    machine.interrupt_at = None
    results = run(recipe)
    assert [repeat for _, _, repeat in machine.made] == [i // 2 for i in range(len(machine.made))]
    assert len(results[0].runs) == len(results[1].runs) == len(machine.made) / 2


@pytest.fixture
def searched(recipe: Recipe) -> Recipe:
    load = Load(2, 8, 16, 4, "poisson", slo="ttft_p50<10s")
    return replace(recipe, targets=(), loads=(load,))


@pytest.mark.parametrize("interrupt_at", [0, 1, 5, 13])
def test_an_interrupted_search_goes_on_where_it_stopped(
    searched, run, machine, interrupt_at, tmp_path
):
    machine.interrupt_at = interrupt_at
    with pytest.raises(KeyboardInterrupt):
        run(searched)
    assert len(machine.made) == interrupt_at
    machine.interrupt_at = None
    (result,) = run(searched)
    probes = {probe.rate: probe for probe in result.search.probes}
    assert result.search.rate == result.load.rate
    rates = [rate for rate, _, _ in machine.made]
    assert rates[0] is None  # one by one
    assert rates[-2:] == [result.search.rate] * 2  # measured at what was found
    for rate, probe in probes.items():  # no run was made twice
        assert rates[1:-2].count(rate) == probe.num_runs
    assert len(rates) == 1 + sum(probe.num_runs for probe in probes.values()) + 2
    assert not list((tmp_path / "results").rglob("partial.json"))


def test_a_search_that_finds_nothing_keeps_what_it_tried(searched, run, machine):
    load = replace(searched.loads[0], slo="ttft<1ms")
    (result,) = run(replace(searched, loads=(load,)))
    assert "no rate keeps the SLO" in result.error
    assert result.search.rate is None
    assert len(result.search.probes) == 5
    assert all(probe.terms_ms[0] == pytest.approx(10) for probe in result.search.probes)
