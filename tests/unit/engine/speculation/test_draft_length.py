from itertools import product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmopt.engine.speculation.draft_length import (
    PRIOR_ACCEPTANCE,
    Acceptance,
    StepTimes,
    choose_lengths,
)


def times(base_s: float, token_s: float, draft_s: float) -> StepTimes:
    result = StepTimes()
    for num_tokens in (1, 3, 6, 2) * 2:
        result.record_model(num_tokens, base_s + token_s * num_tokens)
        result.record_draft(num_tokens, draft_s * num_tokens)
    return result


def test_acceptance_learns_each_position_from_those_that_were_reached() -> None:
    acceptance = Acceptance([0.5] * 4)
    for _ in range(200):
        acceptance.record(num_drafted=3, num_taken=1)
    assert acceptance.rates[0] > 0.99
    assert acceptance.rates[1] < 0.01
    assert acceptance.rates[2:] == [0.5, 0.5]
    assert acceptance.gains(3) == pytest.approx([1, 0, 0], abs=0.01)
    assert acceptance.gains(0) == []


def test_what_is_not_tried_goes_back_to_the_prior() -> None:
    acceptance = Acceptance([0.0, 1.0])
    for _ in range(1500):
        acceptance.fade()
    assert acceptance.rates == pytest.approx([PRIOR_ACCEPTANCE] * 2, abs=0.01)


def test_times_are_the_line_that_was_measured() -> None:
    assert times(5.0, 0.25, 0.75).fit() == pytest.approx((5.0, 0.25))
    assert times(5.0, 0.25, 0.75).draft_s == pytest.approx(0.75)


def test_times_follow_a_change() -> None:
    measured = times(5.0, 1.0, 1.0)
    for num_tokens in [1, 3, 6, 2] * 16:
        measured.record_model(num_tokens, 2.0 + 0.1 * num_tokens)
    assert measured.fit() == pytest.approx((2.0, 0.1), rel=1e-6)


def test_slow_steps_do_not_count_among_faster_ones() -> None:
    measured = StepTimes()
    for num_tokens, seconds in [(1, 50.0), (1, 1.0), (1, 9.0), (3, 2.0), (3, 70.0)]:
        measured.record_model(num_tokens, seconds)
    assert measured.fit() == pytest.approx((0.5, 0.5))
    for seconds in (8.0, 2.0, 60.0):
        measured.record_draft(2, seconds)
    assert measured.draft_s == 1.0


def test_steps_of_one_size_or_faster_with_more_tokens_have_no_slope() -> None:
    flat, falling = StepTimes(), StepTimes()
    for _ in range(5):
        flat.record_model(4, 2.0)
    for num_tokens in (1, 2, 3) * 2:
        falling.record_model(num_tokens, 4.0 - num_tokens)
    assert flat.fit() == pytest.approx((2.0, 0.0))
    assert falling.fit()[1] == 0.0
    assert StepTimes().fit() == (1.0, 0.0)


def test_free_drafts_are_as_long_as_they_may_be_and_costly_ones_are_not_made() -> None:
    gains = Acceptance([0.6] * 5).gains(5)
    assert choose_lengths([gains], times(1.0, 0.0, 0.0)) == [5]
    assert choose_lengths([gains], times(1.0, 0.0, 2.0)) == [0]
    assert choose_lengths([gains], times(0.0, 1.0, 0.0)) == [0]
    assert choose_lengths([], times(1.0, 0.0, 0.0)) == []


def test_a_request_that_accepts_little_does_not_shorten_the_draft_of_another() -> None:
    good, bad = Acceptance([0.95] * 6).gains(6), Acceptance([0.05] * 6).gains(6)
    chosen = choose_lengths([bad, good], times(1.0, 0.2, 0.0))
    assert chosen[0] == 0
    assert chosen[1] >= 4


def expected_rate(gains: list[list[float]], lengths: tuple[int, ...], measured: StepTimes) -> float:
    base_s, token_s = measured.fit()
    taken = len(gains) + sum(sum(g[:n]) for g, n in zip(gains, lengths, strict=True))
    spent = base_s + token_s * (len(gains) + sum(lengths)) + measured.draft_s * max(lengths)
    return taken / spent


@given(
    st.lists(st.lists(st.floats(0, 1), min_size=0, max_size=4), min_size=1, max_size=3),
    st.sampled_from([0.0, 0.01, 0.1, 0.3]),
    st.sampled_from([0.0, 0.05, 0.5]),
)
def test_the_choice_is_nearly_the_best_of_all(
    rates: list[list[float]], token_s: float, draft_s: float
) -> None:
    gains = [Acceptance(row).gains(len(row)) for row in rates]
    measured = times(1.0, token_s, draft_s)
    chosen = tuple(choose_lengths(gains, measured))
    best = max(
        expected_rate(gains, lengths, measured)
        for lengths in product(*(range(len(row) + 1) for row in rates))
    )
    assert expected_rate(gains, chosen, measured) >= 0.97 * best
    assert expected_rate(gains, chosen, measured) >= 0.999 * len(gains) / (
        1.0 + token_s * len(gains)
    )
