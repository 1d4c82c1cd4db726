import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from llmopt.bench.timeline import decoding, timeline

SPANS = st.lists(
    st.tuples(st.floats(0, 100), st.floats(0.01, 50)).map(lambda s: (s[0], s[0] + s[1])),
    min_size=1,
    max_size=12,
)


def run_of(make, spans, **changes):
    requests = [
        make.request(sent_s=start, token_times_s=(end,), done_s=end) for start, end in spans
    ]
    duration = max(end for _, end in spans)
    return make.run(requests, **({"duration_s": duration} | changes))


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(spans=SPANS)
def test_mean_and_peak_follow_from_the_spans(make, spans):
    run = run_of(make, spans)
    line = timeline(run)
    total = sum(end - start for start, end in spans)
    assert line.mean(run.duration_s) == pytest.approx(total / run.duration_s)
    at_once = max(sum(a <= start < b for a, b in spans) for start, _ in spans)
    assert line.peak == at_once
    assert 0 <= line.usual_level() <= line.peak
    start, end = line.steady_window()
    assert 0 <= start < end <= run.duration_s


def test_who_leaves_is_gone_before_the_next_comes(make):
    assert timeline(run_of(make, [(0, 1), (1, 2)])).peak == 1
    assert timeline(run_of(make, [(0, 1.5), (1, 2)])).peak == 2


def test_the_steady_window_is_without_ramp_and_drain(make):
    # 1 in flight from 0, 2 from 1 to 9, 1 until 10
    line = timeline(run_of(make, [(0, 9), (1, 10)]))
    assert line.usual_level() == 2
    assert line.steady_window() == (1, 9)


def test_a_gap_in_the_middle_belongs_to_the_window(make):
    line = timeline(run_of(make, [(0, 4), (0, 4), (5, 9), (5, 9)]))
    assert line.steady_window() == (0, 9)


def test_a_failed_request_was_in_flight_until_it_was_last_seen(make):
    lost = make.request(sent_s=0.0, token_times_s=(1.0, 3.0), done_s=None, error="gone")
    never = make.request(sent_s=0.0, token_times_s=(), done_s=None, error="hang")
    line = timeline(make.run([lost, never], duration_s=5.0))
    assert line.mean(5.0) == pytest.approx((3 + 5) / 5)


def test_decoding_is_from_first_to_last_token(make):
    one = make.request(token_times_s=(1.0, 2.0))
    two = make.request(token_times_s=(1.5, 2.5))
    assert decoding(make.run([one, two])).peak == 2
    assert decoding(make.run([one, make.request(token_times_s=())])).peak == 1
    assert timeline(make.run([])).steady_window() is None
