from hypothesis import given
from hypothesis import strategies as st

from llmopt.engine.policies import SchedulingPolicy, make_policy


def test_the_names_are_the_policies() -> None:
    assert make_policy("fcfs") == SchedulingPolicy()
    assert make_policy("priority", 7) == SchedulingPolicy(by_priority=True, aging_steps=7)
    assert make_policy("static") == SchedulingPolicy(continuous=False)


def test_first_come_first_served_is_the_order_of_arrival() -> None:
    policy = make_policy("fcfs")
    assert policy.rank(5, 0, 0) < policy.rank(-5, 10, 1)


@given(
    priority=st.integers(-3, 3),
    later_priority=st.integers(-3, 3),
    step=st.integers(0, 100),
    delay=st.integers(0, 100),
    aging_steps=st.integers(1, 20),
)
def test_a_later_request_overtakes_for_its_better_priority_and_a_bounded_time(
    priority: int, later_priority: int, step: int, delay: int, aging_steps: int
) -> None:
    policy = make_policy("priority", aging_steps)
    first = policy.rank(priority, step, 0)
    later = policy.rank(later_priority, step + delay, 1)
    assert (later < first) == (delay < (priority - later_priority) * aging_steps)
