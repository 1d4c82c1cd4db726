import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmopt.backends.protocol import TokenEvent
from llmopt.bench.stream_record import StreamRecord
from llmopt.bench.workload import PlannedRequest


def record_of(*events, done_s=9.0):
    stream = StreamRecord("request-0", PlannedRequest((1, 2, 3), 8), 0.5, sent_s=0.6)
    for at_s, event in enumerate(events, start=1):
        stream.add(event, float(at_s))
    return stream.freeze(done_s)


def test_an_event_without_tokens_is_seen_but_is_no_token():
    usage = TokenEvent(0, has_choice=False)
    record = record_of(usage, TokenEvent(0), TokenEvent(2), TokenEvent(1), TokenEvent(0, "length"))
    assert (record.first_event_s, record.first_token_s, record.last_token_s) == (2, 3, 4)
    assert (record.num_events, record.token_counts) == (4, (2, 1))
    assert record.finish_reason == "length"
    assert record.error is None


def test_what_the_server_says_of_the_prompt_and_itself():
    record = record_of(
        TokenEvent(1, num_prompt_tokens=4, num_cached_tokens=2),
        TokenEvent(1, "length", num_preemptions=1, server_timings_s={"queue": 0.5}),
    )
    assert (record.num_prompt_tokens, record.num_prompt_tokens_sent) == (4, 3)
    assert (record.num_cached_tokens, record.num_preemptions) == (2, 1)
    assert record.server_timings_s == {"queue": 0.5}


@given(events=st.integers(1, 20), total=st.integers(1, 200))
def test_a_total_is_spread_evenly_over_the_events_that_brought_it(events, total):
    record = record_of(*[TokenEvent(1)] * events, TokenEvent(0, "stop", total_tokens=total))
    if total < events:
        assert record.error == f"the server counts {total} tokens, and {events} events brought some"
        return
    assert record.num_output_tokens == sum(record.token_counts) == total
    assert max(record.token_counts) - min(record.token_counts) <= 1
    assert len(record.token_times_s) == events


@pytest.mark.parametrize("events", [[], [TokenEvent(0)], [TokenEvent(0, total_tokens=3)]])
def test_a_stream_without_a_token_is_an_error(events):
    record = record_of(*events)
    assert record.error == "the stream ended without a token"
    assert record.num_output_tokens == 0


@pytest.mark.parametrize(
    ("events", "counted_by"),
    [
        ([TokenEvent(1), TokenEvent(1)], "backend"),
        ([TokenEvent(1), TokenEvent(1, is_guess=True)], "events"),
        ([TokenEvent(1, is_guess=True), TokenEvent(0, total_tokens=3)], "backend"),
    ],
)
def test_who_counted_is_told(events, counted_by):
    assert record_of(*events).counted_by == counted_by


def test_events_without_a_token_keep_their_times_if_they_are_part_of_the_answer():
    usage = TokenEvent(0, has_choice=False)
    record = record_of(TokenEvent(0), TokenEvent(1), TokenEvent(0), TokenEvent(1, "length"), usage)
    assert record.empty_event_times_s == (1, 3)
    assert record.token_times_s == (2, 4)


@pytest.mark.parametrize(
    ("events", "num_reasoning", "first_answer_s"),
    [
        ([TokenEvent(1), TokenEvent(2)], 0, None),
        ([TokenEvent(1, is_reasoning=True), TokenEvent(1, is_reasoning=True)], 2, None),
        (
            [TokenEvent(0), *[TokenEvent(1, is_reasoning=True)] * 2, TokenEvent(1), TokenEvent(1)],
            2,
            4,
        ),
    ],
)
def test_where_the_answer_begins_after_a_reasoning(events, num_reasoning, first_answer_s):
    record = record_of(*events)
    assert (record.num_reasoning_events, record.first_answer_s) == (num_reasoning, first_answer_s)
    assert record.first_token_s == next(i for i, e in enumerate(events, 1) if e.num_tokens)
