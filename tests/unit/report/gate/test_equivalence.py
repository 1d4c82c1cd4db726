import math
from statistics import fmean

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from llmopt.quality.student import upper_quantile
from llmopt.report.gate.equivalence import (
    ALPHA,
    adjusted,
    exact_change,
    further_units,
    is_equivalent,
    is_regression,
    paired_change,
    unpaired_change,
)

values = st.floats(-1, 1, allow_nan=False).map(lambda x: round(x, 6))


def test_the_signed_rank_test_is_scipys():
    differences = np.random.default_rng(0).normal(0.02, 0.04, 12)
    change = paired_change(list(differences), num_tests=4)
    expected = stats.wilcoxon(differences, alternative="greater", method="exact")
    assert change.method == "signed rank of pairs"
    assert change.p_value == pytest.approx(expected.pvalue)


@given(st.lists(values, min_size=12, max_size=20))
def test_the_lower_end_is_above_0_exactly_when_the_test_rejects(differences):
    change = paired_change(differences, num_tests=8)
    assert change.interval[0] <= change.value <= change.interval[1]
    assert (change.interval[0] > 0) == (change.p_value <= ALPHA)


@given(st.lists(values, min_size=3, max_size=20), st.floats(-1, 1))
def test_a_shift_of_all_pairs_shifts_estimate_and_interval(differences, shift):
    before = paired_change(differences, num_tests=8)
    after = paired_change([value + shift for value in differences], num_tests=8)
    assert after.value == pytest.approx(before.value + shift, abs=1e-9)
    if before.spread > 0:
        assert after.interval == pytest.approx([end + shift for end in before.interval], abs=1e-6)


def test_few_pairs_are_judged_by_students_t():
    differences = [0.01, 0.03, 0.02, 0.04]
    change = paired_change(differences, num_tests=8)
    expected = stats.ttest_1samp(differences, 0, alternative="greater")
    assert change.method == "Student's t of pairs"
    assert change.p_value == pytest.approx(expected.pvalue)


def test_a_single_slow_run_moves_the_estimate_little():
    calm = [0.01, -0.012, 0.004, -0.003, 0.008, -0.009, 0.002, 0.0, 0.005, -0.006]
    struck = [*calm[:-1], 0.5]
    assert abs(paired_change(struck, 4).value - paired_change(calm, 4).value) < 0.006
    assert fmean(struck) > 0.05


def test_learned_noise_widens_what_a_lucky_scatter_narrowed():
    differences = [0.0501, 0.05, 0.0499, 0.05, 0.0502, 0.05, 0.0498, 0.05, 0.0501, 0.05]
    lucky = paired_change(differences, 4)
    honest = paired_change(differences, 4, noise=0.1)
    assert lucky.p_value < 0.01 < ALPHA < honest.p_value
    assert honest.interval[1] == pytest.approx(0.05 + 1.645 * 0.1 / math.sqrt(10), abs=1e-3)


def test_welch_is_scipys_where_there_is_no_session_noise():
    rng = np.random.default_rng(1)
    before, after = list(rng.normal(0, 0.03, 5)), list(rng.normal(0.05, 0.04, 5))
    expected = stats.ttest_ind(after, before, equal_var=False, alternative="greater")
    change = unpaired_change(before, after, 0.0)
    assert change.p_value == pytest.approx(expected.pvalue, rel=0.5)
    assert change.p_value >= expected.pvalue  # whole degrees of freedom, rounded down


def test_more_runs_do_not_reduce_the_noise_between_sessions():
    rng = np.random.default_rng(2)
    before, after = list(rng.normal(0, 0.01, 200)), list(rng.normal(0.06, 0.01, 200))
    change = unpaired_change(before, after, 0.05)
    assert change.p_value > 0.1
    assert further_units(change, 0.03, num_tests=1) is None


@given(st.lists(st.floats(0, 1), min_size=1, max_size=8))
def test_holm_is_at_least_the_raw_and_at_most_bonferroni(p_values):
    for raw, corrected in zip(p_values, adjusted(p_values), strict=True):
        assert raw <= corrected <= min(1.0, len(p_values) * raw) + 1e-12 or corrected <= 1.0
    assert min(adjusted(p_values)) == pytest.approx(min(1.0, len(p_values) * min(p_values)))


def test_holm_steps_down():
    assert adjusted([0.04, 0.01, 0.03]) == pytest.approx([0.06, 0.03, 0.06])


def test_a_real_change_within_the_tolerance_passes():
    change = exact_change(0.02)
    assert not is_regression(change, 0.05, 0.0)
    assert is_equivalent(change, 0.05)
    assert is_regression(exact_change(0.06), 0.05, 0.0)


def test_the_asked_for_runs_decide():
    rng = np.random.default_rng(3)
    differences = list(rng.normal(0, 0.06, 10))
    change = paired_change(differences, num_tests=8)
    assert not is_equivalent(change, 0.02)
    more = further_units(change, 0.02, num_tests=8)
    assert more is not None
    assert 5 < more < 400
    # As many values with the same estimate and scatter do decide; half of the further ones do not.
    error = change.spread / math.sqrt(10 + more)
    assert change.value + upper_quantile(ALPHA, 9 + more) * error < 0.02
    error = change.spread / math.sqrt(10 + more // 2)
    assert change.value + upper_quantile(ALPHA, 9 + more // 2) * error > 0.02


def test_the_interval_ends_exactly_where_the_test_turns():
    differences = np.random.default_rng(4).normal(0, 1, 12)
    rows, columns = np.triu_indices(12)
    averages = np.sort((differences[rows] + differences[columns]) / 2)
    verdicts = set()
    for null in (averages[1:] + averages[:-1]) / 2:  # between any two Walsh averages
        change = paired_change(list(differences - null), num_tests=4)
        assert (change.interval[0] > 0) == (change.p_value <= ALPHA)
        mirrored = paired_change(list(null - differences), num_tests=4)
        assert mirrored.interval == pytest.approx((-change.interval[1], -change.interval[0]))
        verdicts.add(change.p_value <= ALPHA)
    assert verdicts == {True, False}


def test_noise_from_few_sessions_is_less_sure():
    runs = [0.0, 0.001, -0.001, 0.0005]
    slower = [value + 0.1 for value in runs]
    known, learned = (unpaired_change(runs, slower, 0.03, count) for count in (None, 3))
    assert known.value == learned.value
    assert learned.interval[1] - learned.value > 1.5 * (known.interval[1] - known.value)
    assert learned.p_value > 3 * known.p_value
    degrees = 2  # what three sessions leave where they are all of the noise
    t = learned.value / (0.03 * math.sqrt(2))
    assert learned.p_value == pytest.approx(float(stats.t.sf(t, degrees)), rel=0.05)


@pytest.mark.parametrize("num_tests", [1, 8, 14])
def test_constant_differences_need_as_many_pairs_as_a_sign_test(num_tests):
    change = paired_change([0.1] * 3, num_tests)
    further = further_units(change, 0.05, num_tests)
    assert further is not None
    enough, few = (paired_change([0.1] * (3 + n), num_tests) for n in (further, further - 1))
    assert num_tests * enough.p_value <= ALPHA < num_tests * few.p_value
