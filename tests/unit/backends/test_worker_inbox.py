import threading
import time
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmopt.backends.workers.run_worker import Inbox, why_not

ACTIONS = st.lists(
    st.one_of(
        st.tuples(st.just("put"), st.just(0)),
        st.tuples(st.just("abort"), st.integers(0, 12)),
        st.tuples(st.just("take"), st.integers(0, 4)),
        st.tuples(st.just("aborted"), st.just(0)),
    ),
    max_size=60,
)


def ids(requests: list[dict[str, Any]]) -> list[int]:
    return [request["id"] for request in requests]


@given(ACTIONS)
def test_every_request_is_taken_once_and_in_order_unless_it_was_aborted(actions):
    inbox = Inbox()
    waiting: list[int] = []
    told: set[int] = set()
    num_put = 0
    for action, value in actions:
        if action == "put":
            inbox.put({"id": num_put})
            waiting.append(num_put)
            num_put += 1
        elif action == "abort":
            inbox.abort(value)
            if value in waiting:
                waiting.remove(value)
            else:
                told.add(value)
        elif action == "take":
            assert ids(inbox.take(value)) == waiting[:value]
            waiting = waiting[value:]
        else:
            assert inbox.aborted() == told
            told = set()
    assert ids(inbox.take(1000)) == waiting


def later(delay_s: float, *actions: Any) -> threading.Thread:
    def act() -> None:
        for action in actions:
            time.sleep(delay_s)
            action()

    thread = threading.Thread(target=act)
    thread.start()
    return thread


@pytest.mark.parametrize("abort", [False, True])
def test_a_taker_waits_for_a_request_or_for_an_abort(abort):
    inbox = Inbox()
    action = (lambda: inbox.abort(7)) if abort else (lambda: inbox.put({"id": 7}))
    thread = later(0.05, action)
    started = time.monotonic()
    taken = inbox.take(4, wait=True)
    assert time.monotonic() - started > 0.04
    assert (ids(taken), inbox.aborted()) == (([], {7}) if abort else ([7], set()))
    thread.join()


def test_a_batch_gathers_what_comes_in_quick_succession():
    inbox = Inbox()
    puts = [lambda n=n: inbox.put({"id": n}) for n in range(5)]
    thread = later(0.02, *puts)
    assert ids(inbox.take(8, wait=True, gather_s=0.5)) == [0, 1, 2, 3, 4]
    thread.join()


def test_a_full_batch_does_not_wait():
    inbox = Inbox()
    for number in range(3):
        inbox.put({"id": number})
    started = time.monotonic()
    assert ids(inbox.take(2, wait=True, gather_s=30)) == [0, 1]
    assert time.monotonic() - started < 5


@given(st.integers(0, 40), st.integers(-3, 40))
def test_what_is_served_fits_the_context(num_prompt, max_tokens):
    request = {"id": 1, "prompt_token_ids": [5] * num_prompt, "max_tokens": max_tokens}
    fits = num_prompt >= 1 and max_tokens >= 1 and num_prompt + max_tokens <= 32
    assert (why_not(request, 32) is None) == fits
