import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmopt.engine.speculation.stats import SpeculationStats, break_even_acceptance


def test_decodes_are_counted_by_position() -> None:
    stats = SpeculationStats()
    for num_drafted, num_taken in [(3, 3), (3, 1), (0, 0), (1, 0)]:
        stats.count_decode(num_drafted, num_taken)
    assert (stats.num_decodes, stats.num_decode_tokens) == (4, 8)
    assert (stats.num_drafts, stats.num_draft_tokens, stats.num_accepted_tokens) == (3, 7, 4)
    assert stats.drafted_by_position == [3, 2, 2]
    assert stats.accepted_by_position == [2, 1, 1]
    assert stats.acceptance_by_position == pytest.approx([2 / 3, 1 / 2, 1 / 2])
    assert stats.acceptance_rate == pytest.approx(4 / 7)
    assert stats.tokens_per_step == 2.0
    assert stats.mean_draft_tokens == pytest.approx(7 / 3)


def test_nothing_counted_is_no_division_by_zero() -> None:
    stats = SpeculationStats()
    assert (stats.acceptance_rate, stats.tokens_per_step, stats.mean_draft_tokens) == (0, 0, 0)
    assert stats.acceptance_by_position == []


def test_break_even_of_known_cases() -> None:
    assert break_even_acceptance(1, 1.5) == pytest.approx(0.5)  # 1 + a = 1.5
    assert break_even_acceptance(2, 1.75) == pytest.approx(0.5)  # 1 + a + a^2
    assert break_even_acceptance(3, 4.0) == pytest.approx(1.0)
    assert break_even_acceptance(3, 4.1) is None
    assert break_even_acceptance(3, 1.0) == pytest.approx(0.0, abs=1e-9)


@given(st.integers(1, 8), st.floats(0, 1))
def test_break_even_inverts_the_expected_number_of_tokens(k: int, acceptance: float) -> None:
    cost = sum(acceptance**i for i in range(k + 1))
    found = break_even_acceptance(k, cost)
    assert found is not None
    assert sum(found**i for i in range(k + 1)) == pytest.approx(cost)
