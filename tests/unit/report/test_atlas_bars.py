import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmopt.report.atlas_bars import LEFT, PLOT_HEIGHT, TOP, Bar, bar_chart, nice_ticks

VALUES = st.floats(min_value=0, max_value=1e3, allow_subnormal=False).map(
    lambda value: 0.0 if value < 1e-12 else value
)


@given(top=st.floats(min_value=1e-9, max_value=1e9))
def test_ticks_are_few_round_and_reach_the_top(top):
    ticks = nice_ticks(top)
    assert 3 <= len(ticks) <= 5
    assert ticks[0] == 0
    assert ticks[-2] < top <= ticks[-1] * (1 + 1e-9)
    mantissa = float(f"{ticks[1]:e}".partition("e")[0])
    assert min(abs(mantissa - nice) for nice in (1, 2, 5)) < 1e-9


def test_a_chart_of_zeros_has_an_axis():
    chart = bar_chart([Bar("a", 0.0, "", "a", (0.0, 0.0))], 300)
    assert [tick.text for tick in chart.ticks] == ["0", "1"]
    assert chart.bars[0].height == 0


@given(
    values=st.lists(VALUES, min_size=1, max_size=90),
    width=st.sampled_from([200.0, 470.0, 960.0]),
    label=st.text(alphabet="abc ", max_size=20),
)
def test_everything_lies_in_the_chart(values, width, label):
    bars = [Bar(label, v, "", "a", (0.5 * v, 1.5 * v)) for v in values]
    chart = bar_chart(bars, width)
    for placed in chart.bars:
        assert placed.x >= LEFT
        assert placed.x + placed.width <= chart.right
        assert placed.y >= TOP - 1e-6
        assert placed.y + placed.height == pytest.approx(TOP + PLOT_HEIGHT)
        upper, lower = placed.whisker
        assert TOP - 1e-6 <= upper <= placed.y <= lower <= chart.bottom
    for left, right in zip(chart.bars, chart.bars[1:], strict=False):
        assert left.x + left.width < right.x
    assert chart.bottom < chart.height


def test_heights_are_as_the_values():
    chart = bar_chart([Bar("a", 1.0, "", "a"), Bar("b", 4.0, "", "a")], 300)
    assert chart.bars[1].height == pytest.approx(4 * chart.bars[0].height)
    assert chart.bars[0].whisker is None
    assert chart.bars[1].height == pytest.approx(PLOT_HEIGHT)  # 4 is the last tick


def test_labels_that_do_not_fit_are_turned_and_those_that_still_do_not_left_out():
    wide = bar_chart([Bar(str(i), 1.0, "", "a") for i in range(30)], 960)
    assert not wide.labels_turned
    assert len(wide.labelled) == 30
    turned = bar_chart([Bar("embedding", 1.0, "", "a") for _ in range(30)], 960)
    assert turned.labels_turned
    assert len(turned.labelled) == 30
    crowded = bar_chart([Bar("12 longer", 1.0, "", "a") for _ in range(160)], 960)
    spacing = crowded.labelled[1].center - crowded.labelled[0].center
    assert spacing >= 17
    assert len(crowded.labelled) < 80


def test_a_bar_without_a_label_belongs_to_the_one_before_it():
    chart = bar_chart([Bar(str(i // 2) * (i % 2 == 0), 1.0, "", "a") for i in range(60)], 960)
    assert [placed.bar.label for placed in chart.labelled] == [str(i) for i in range(30)]
    assert not chart.labels_turned
    assert len(chart.bars) == 60
