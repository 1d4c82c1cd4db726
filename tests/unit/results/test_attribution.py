from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from llmopt.results.attribution import (
    Attribution,
    ProfiledPart,
    StepGroup,
    StepProfile,
    TimePart,
    step_groups,
    to_counters,
)
from llmopt.results.codec import from_json, to_json
from llmopt.results.schema import CellResult

SUMS = st.integers(1, 1 << 40).map(float)
GROUPS = st.builds(
    StepGroup, *[SUMS] * 7, st.none() | SUMS, *[st.floats(0, 1e6, allow_nan=False)] * 2
)


@given(st.dictionaries(st.tuples(st.integers(1, 9999), st.integers(1, 999)), GROUPS, max_size=5))
def test_counters_say_what_the_groups_said(groups):
    counters = {"num_steps": 7.0, "steps_of_something": 1.0}
    for size, group in groups.items():
        counters |= to_counters(*size, group)
    assert step_groups(counters) == tuple(groups[size] for size in sorted(groups))


def test_groups_without_a_step_in_the_run_are_left_out():
    group = StepGroup(2, 2, 2, 2, 2, 30.0, 100.0, None, 0.5, 0.1)
    warm = to_counters(1, 1, group)
    both = warm | to_counters(8, 1, replace(group, num_steps=3.0))
    run = {name: value - warm.get(name, 0) for name, value in both.items()}
    assert step_groups(run) == (replace(group, num_steps=3.0),)


def test_a_foreign_backends_counters_have_no_groups():
    assert step_groups({"num_steps": 3.0, "steps_8x8_num_steps": 3.0}) == ()


def test_shares_are_of_the_wall_time():
    parts = (TimePart("weights", 3.0, 2.5), TimePart("idle", 1.0))
    found = Attribution(4.0, parts, 10, 5, 0.0, None, 100.0, None, 7.0, 8.0, 2.0)
    assert found.seconds("weights", "kv") == 3.0
    assert found.share("weights", "idle") == 1.0


def test_a_profile_comes_back_from_a_file(make_result):
    part = ProfiledPart("qkv", 0.25, 2, "int4pack", 100.0, 2e9, 0.2)
    profile = StepProfile("decode", 4, 4, 99, 20, 0.5, 0.6, (part, ProfiledPart("rest", 0.35)))
    result = make_result(profile=(profile,))
    assert from_json(CellResult, to_json(result), "a file") == result
    old = to_json(result)
    del old["profile"]
    assert from_json(CellResult, old, "an old file").profile == ()
