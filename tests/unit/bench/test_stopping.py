import math
import random
from dataclasses import replace
from statistics import fmean

import pytest

from llmopt.bench.cells import OpenCell
from llmopt.bench.statistics import MIN_RUNS, half_width
from llmopt.bench.stopping import main_numbers, rounds, stopping_record, widest_of
from llmopt.recipe import check_loads
from llmopt.recipe.loads import Load
from llmopt.recipe.schema import Base, Recipe, Target, cells

RECIPE = Recipe(
    "r", Base("m"), (Target("other", "n"),), (Load(1, 2, 8, 4), Load(2, 2, 8, 4)), until_ci=0.03
)


def served(make, repeat, speed):
    """A run of two requests whose times are all in proportion: TTFT 0.8, TPOT 0.75, 4 s long."""
    times = tuple(0.2 + t * speed for t in (0.8, 1.3, 2.3))
    requests = [make.request(token_times_s=times) for _ in range(2)]
    return make.run(requests, repeat=repeat, duration_s=4.0 * speed)


def measure(make, opened, speeds, recipe=RECIPE):
    """Run the rounds: `speeds[i]` yields how slow the runs of cell i are. Returns the repeats."""
    done = []
    for each in rounds(recipe, opened):
        done.append(each)
        for cell, speed in zip(opened, speeds, strict=True):
            if not cell.has_run(each.repeat):
                cell.runs.append(served(make, each.repeat, speed(each.repeat)))
    return done


def opened_cells(recipe=RECIPE):
    return [OpenCell(cell) for cell in cells(recipe)]


def steady(_repeat):
    return 1.0


def alternating(share):
    return lambda repeat: 1.0 + (share if repeat % 2 else -share)


def test_without_a_bound_there_are_as_many_rounds_as_asked(make):
    recipe = replace(RECIPE, until_ci=None, repeats=4)
    opened = opened_cells(recipe)
    done = measure(make, opened, [alternating(0.5)] * 4, recipe)
    assert [each.repeat for each in done] == [0, 1, 2, 3]
    assert {each.expected for each in done} == {4}
    assert done[1].detail == "run 2 of 4"
    assert stopping_record(recipe, opened[0], opened) is None


def test_runs_that_agree_are_measured_no_more_than_asked(make):
    opened = opened_cells()
    assert len(measure(make, opened, [steady] * 4)) == 3
    record = stopping_record(RECIPE, opened[1], opened)
    assert record.is_settled
    assert record.reason == "after 3 runs every main number is within 3 %"
    assert set(record.widths) == {"output_throughput", "tpot_p50", "ttft_p50", "speed-up"}
    assert max(record.widths.values()) < 1e-12
    assert "speed-up" not in stopping_record(RECIPE, opened[0], opened).widths  # the base's own


def test_one_cell_that_scatters_keeps_all_of_them_going(make):
    opened = opened_cells()
    done = measure(make, opened, [steady, steady, steady, alternating(0.02)])
    number = len(done)
    assert 3 < number < 20
    values = [1.0 + (0.02 if i % 2 else -0.02) for i in range(number)]

    def width(count):
        return half_width(values[:count]) / fmean(values[:count])

    # the first round at which the mean of the runs is known to 3 %, and the ratio to the base
    assert width(number) <= 0.03 < width(number - 1)
    assert all(len(cell.runs) == number for cell in opened)
    assert done[-1].detail.startswith(f"run {number} of at most 20: ")
    assert "of r-other-c2 is within " in done[-1].detail
    assert done[-1].detail.endswith(" %, not 3 %")
    assert number <= done[-1].expected <= 20


def test_the_most_runs_end_it_and_the_result_says_so(make):
    recipe = replace(RECIPE, max_repeats=6)
    opened = opened_cells(recipe)
    assert len(measure(make, opened, [steady] * 3 + [alternating(0.3)], recipe)) == 6
    noisy, calm = (stopping_record(recipe, opened[i], opened) for i in (3, 1))
    assert noisy.reason.startswith("stopped at max_repeats, 6 runs: ")
    assert noisy.reason.endswith("not 3 %")
    assert not noisy.is_settled
    assert calm.is_settled
    assert calm.reason == noisy.reason  # the sweep's


def test_what_the_machine_does_to_both_cancels_in_the_ratio_but_not_in_the_numbers(make):
    recipe = replace(RECIPE, max_repeats=5, loads=RECIPE.loads[:1])
    opened = opened_cells(recipe)
    measure(make, opened, [alternating(0.2)] * 2, recipe)
    widths = stopping_record(recipe, opened[1], opened).widths
    assert widths["speed-up"] < 1e-9
    assert widths["output_throughput"] > 0.2


def test_a_ratio_is_to_the_base_under_the_same_load(make):
    recipe = replace(RECIPE, max_repeats=5)
    opened = opened_cells(recipe)
    # base and other at the first load, then at the second
    measure(make, opened, [alternating(0.2), alternating(0.2), steady, steady], recipe)
    for cell in (opened[1], opened[3]):
        assert stopping_record(recipe, cell, opened).widths["speed-up"] < 1e-9


def test_a_cell_that_failed_is_not_waited_for(make):
    opened = opened_cells()
    opened[3].error = "gone"
    speeds = [steady] * 3 + [alternating(0.5)]
    assert len(measure(make, opened, speeds)) == 3
    assert stopping_record(RECIPE, opened[3], opened) is None
    for cell in opened:
        cell.error = "gone"
    assert [each.repeat for each in rounds(RECIPE, opened)] == [0, 1, 2]  # nothing to be sure of


def test_too_few_runs_are_never_enough(make):
    recipe = replace(RECIPE, repeats=1)
    opened = opened_cells(recipe)
    assert len(measure(make, opened, [steady] * 4, recipe)) == MIN_RUNS
    assert check_loads.MIN_RUNS == MIN_RUNS
    widest = widest_of(recipe, opened, 2)
    assert widest.share == math.inf
    assert str(widest).endswith("has too few runs")


def test_a_sweep_that_goes_on_decides_as_if_it_had_not_stopped(make):
    whole = opened_cells()
    chance = random.Random(3)
    speeds = [[chance.lognormvariate(0, 0.03) for _ in range(20)] for _ in whole]
    number = len(measure(make, whole, [values.__getitem__ for values in speeds]))
    assert 3 < number < 20
    for kept in range(number + 1):
        cut = opened_cells()
        for cell, of_whole in zip(cut, whole, strict=True):
            cell.runs = of_whole.runs[:kept]
        cut[0].runs = whole[0].runs[: kept + 1]  # stopped in the middle of a round
        assert len(measure(make, cut, [values.__getitem__ for values in speeds])) == number
        assert [cell.runs for cell in cut] == [cell.runs for cell in whole]


def test_main_numbers_are_those_of_the_runs(make):
    runs = [served(make, 0, 1.0), served(make, 2, 2.0)]
    base = [served(make, 1, 1.0), served(make, 2, 1.0)]
    found = main_numbers(runs, base)
    assert found["output_throughput"] == pytest.approx([6 / 4, 6 / 8])
    assert found["tpot_p50"] == pytest.approx([0.75, 1.5])
    assert found["ttft_p50"] == pytest.approx([0.8, 1.6])
    assert found["speed-up"] == pytest.approx([0.5])  # of the round that both have
    failed = make.run([make.request(error="gone")])
    assert main_numbers([failed], []) == {"output_throughput": [0.0]}


@pytest.mark.parametrize("spread", [0.02, 0.05])
def test_stopping_early_costs_little_coverage(spread):
    """The truth is in at least 88 % of the intervals at which normal runs are stopped."""
    chance = random.Random(spread)
    covered = 0
    for _ in range(1000):
        values = [chance.gauss(1.0, spread) for _ in range(3)]
        while len(values) < 20 and half_width(values) > 0.03 * fmean(values):
            values.append(chance.gauss(1.0, spread))
        covered += abs(fmean(values) - 1.0) <= half_width(values)
    assert 880 <= covered <= 970
