import json
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmopt.bench.workload import make_plan, sessions
from llmopt.bench.workload_prompts import UserPrompt
from llmopt.bench.workload_spec import open_load
from llmopt.errors import UsageError
from llmopt.recipe.loads import Lengths, Load, Workload

TEXT = random.Random(0).choices(range(900), k=60_000)


def plan(load, *, warmup=2, seed=0, repeat=0, user_prompts=()):
    return make_plan(
        open_load(load, warmup), TEXT, seed=seed, repeat=repeat, user_prompts=user_prompts
    )


def load(**fields):
    return Load(**({"concurrency": 3, "prompt_tokens": 20, "output_tokens": 5} | fields))


def prompts_of(found):
    return [request.prompt_token_ids for request in found.measured]


def common_length(first, second):
    length = 0
    while length < min(len(first), len(second)) and first[length] == second[length]:
        length += 1
    return length


def test_a_closed_load_is_planned_without_times():
    found = plan(load(num_requests=7))
    assert (len(found.warmup), len(found.measured), found.concurrency) == (2, 7, 3)
    assert not found.is_open
    assert {(len(r.prompt_token_ids), r.max_tokens) for r in found.measured} == {(20, 5)}
    assert found.max_request_tokens == 25


LOADS = [
    load(num_requests=9),
    load(num_requests=9, kind="poisson", rate=4.0),
    load(num_requests=9, prompt_tokens=Lengths("uniform", 90, 10)),
    load(num_requests=9, workload=Workload(source="random")),
    load(num_requests=9, workload=Workload(turns=3)),
    load(num_requests=9, workload=Workload(prefix_groups=2, prefix_tokens=8)),
    load(num_requests=9, workload=Workload(distinct_prompts=4)),
]


@given(chosen=st.sampled_from(LOADS), seed=st.integers(0, 99), repeat=st.integers(0, 3))
def test_seed_and_repeat_decide_every_request(chosen, seed, repeat):
    found = plan(chosen, seed=seed, repeat=repeat)
    assert plan(chosen, seed=seed, repeat=repeat) == found
    assert prompts_of(plan(chosen, seed=seed, repeat=repeat + 1)) != prompts_of(found)
    assert prompts_of(plan(chosen, seed=seed + 1, repeat=repeat)) != prompts_of(found)
    assert len(found.measured) == 9
    assert found.max_request_tokens <= open_load(chosen, 2).max_request_tokens


@given(chosen=st.sampled_from(LOADS[:4]), seed=st.integers(0, 99))
def test_no_prompt_begins_like_another_warm_up_included(chosen, seed):
    found = plan(chosen, seed=seed)
    beginnings = [r.prompt_token_ids[:8] for r in (*found.warmup, *found.measured)]
    assert len(set(beginnings)) == len(beginnings) == 11


def test_an_open_load_has_ascending_times_at_the_rate():
    found = plan(load(kind="constant", rate=4.0, duration_s=2.5))
    assert [request.scheduled_s for request in found.measured] == [i / 4 for i in range(10)]
    assert found.is_open


def test_groups_share_exactly_their_prefix():
    work = Workload(prefix_groups=3, prefix_tokens=12)
    found = prompts_of(plan(load(num_requests=60, workload=work)))
    assert {len(prompt) for prompt in found} == {20}
    groups = {prompt[:12] for prompt in found}
    assert len(groups) == 3
    shared = {common_length(a, b) for i, a in enumerate(found) for b in found[:i]}
    assert max(shared) < 12 + 8
    assert any(length >= 12 for length in shared)
    assert len(set(found)) == 60


def test_distinct_prompts_repeat():
    found = prompts_of(plan(load(num_requests=60, workload=Workload(distinct_prompts=4))))
    assert len(set(found)) == 4


def test_a_turn_holds_all_that_was_said_before():
    work = Workload(turns=3, think_s=1.5)
    found = plan(load(num_requests=7, workload=work, kind="constant", rate=6.0))
    assert [request.turn for request in found.measured] == [0, 1, 2, 0, 1, 2, 0]
    assert [len(r.prompt_token_ids) for r in found.measured] == [20, 45, 70] * 2 + [20]
    for (_, earlier), (_, later) in zip(*[iter(sessions(found.measured)[0])] * 2, strict=False):
        kept = len(earlier.prompt_token_ids)
        assert later.prompt_token_ids[:kept] == earlier.prompt_token_ids
    # requests come at 6 per second, so conversations of three at 2 per second
    assert [r.scheduled_s for r in found.measured] == [0, None, None, 0.5, None, None, 1]
    assert [r.think_s for r in found.measured[:3]] == [0, 1.5, 1.5]
    assert [len(session) for session in sessions(found.measured)] == [3, 3, 1]


def test_conversations_and_groups_go_together():
    work = Workload(turns=2, prefix_groups=1, prefix_tokens=10)
    found = prompts_of(plan(load(num_requests=6, workload=work)))
    assert len({prompt[:10] for prompt in found}) == 1
    assert [len(prompt) for prompt in found] == [20, 45] * 3


def trace_file(tmp_path, rows):
    path = tmp_path / "trace.jsonl"
    path.write_text("\n".join(json.dumps(row) for row in rows))
    return str(path)


def test_a_trace_is_replayed_with_its_times_scaled_and_lengths_capped(tmp_path):
    rows = [
        {"timestamp": 1000 * i, "input_length": 30 + 10 * i, "output_length": 3 + i}
        for i in range(6)
    ]
    traced = Load(
        2,
        num_requests=5,
        prompt_tokens=Lengths("source", high=60),
        kind="trace",
        trace=trace_file(tmp_path, rows),
        time_scale=0.5,
    )
    found = plan(traced)
    assert [r.scheduled_s for r in found.measured] == [0, 0.5, 1, 1.5, 2]
    assert [len(r.prompt_token_ids) for r in found.measured] == [30, 40, 50, 60, 60]
    assert [r.max_tokens for r in found.measured] == [3, 4, 5, 6, 7]
    spec = open_load(traced, 1).spec
    assert (spec.kind, spec.num_requests, spec.prompt_tokens) == ("trace", 5, 48)
    assert (spec.workload.source, spec.time_scale) == ("trace.jsonl", 0.5)
    assert len(spec.workload.source_sha256) == 64
    short = Load(2, kind="trace", trace=traced.trace, duration_s=1.0, time_scale=0.5)
    assert open_load(short, 1).spec.num_requests == 3


def test_prompts_share_the_blocks_that_the_trace_shares(tmp_path):
    blocks = [[1, 2], [1, 3], [4], []]
    rows = [
        {"timestamp": i, "input_length": 1100, "output_length": 3, "hash_ids": ids}
        for i, ids in enumerate(blocks)
    ]
    found = prompts_of(plan(Load(2, kind="trace", trace=trace_file(tmp_path, rows))))
    assert {len(prompt) for prompt in found} == {1100}
    assert 512 <= common_length(found[0], found[1]) < 512 + 8
    assert common_length(found[0], found[2]) < 8
    assert len(set(found)) == 4


def test_a_prompt_keeps_a_token_of_its_own_where_blocks_would_fill_it(tmp_path):
    rows = [
        {"timestamp": i, "input_length": 512, "output_length": 3, "hash_ids": [1]} for i in range(2)
    ]
    first, second = prompts_of(plan(Load(2, kind="trace", trace=trace_file(tmp_path, rows))))
    assert common_length(first, second) == 511
    assert len(first) == len(second) == 512


def test_the_users_prompts_come_in_order_after_the_warm_up(tmp_path):
    path = tmp_path / "p.jsonl"
    rows = [{"prompt": str(i), "output_tokens": 4 + i} for i in range(3)]
    path.write_text("\n".join(json.dumps(row) for row in rows))
    own = load(num_requests=3, output_tokens=None, workload=Workload(prompts=str(path)))
    prompts = [UserPrompt((i,), 4 + i) for i in range(3)]
    found = plan(own, warmup=1, user_prompts=prompts)
    assert [r.prompt_token_ids for r in (*found.warmup, *found.measured)] == [
        (0,),
        (1,),
        (2,),
        (0,),
    ]
    assert [r.max_tokens for r in found.measured] == [5, 6, 4]
    assert open_load(own, 1).max_request_tokens == 20 + 6
    assert not open_load(own, 1).spec.workload.unique_prompts
    with pytest.raises(UsageError, match=r"prompt 2 has 21 tokens.* room for 20"):
        plan(own, user_prompts=[UserPrompt((1,), 3), UserPrompt((1,) * 21, 3)])
    with pytest.raises(UsageError, match="neither prompt 1 nor the load"):
        plan(own, user_prompts=[UserPrompt((1,), None)])


def test_plain_loads_keep_their_plain_record():
    spec = open_load(load(num_requests=7), 2).spec
    assert spec.workload is None
    assert (spec.prompt_tokens, spec.output_tokens, spec.kind) == (20, 5, "closed")
    varied = open_load(load(num_requests=7, prompt_tokens=Lengths("uniform", 90, 10)), 2)
    assert (varied.spec.prompt_tokens, varied.spec.workload.prompt.high) == (50, 90)
    assert varied.max_request_tokens == 95


def test_a_ramp_knows_its_size_and_its_length():
    spec = open_load(load(kind="ramp", start_rate=1.0, rate=3.0, duration_s=10.0), 0).spec
    assert (spec.num_requests, spec.duration_s) == (20, 10.0)
    spec = open_load(load(kind="ramp", start_rate=1.0, rate=3.0, num_requests=40), 0).spec
    assert spec.duration_s == 20.0


def test_a_trace_that_is_too_short_is_refused(tmp_path):
    row = {"timestamp": 0, "input_length": 3, "output_length": 3}
    with pytest.raises(UsageError, match="has 1 requests, not 2"):
        open_load(Load(2, 2, kind="trace", trace=trace_file(tmp_path, [row])), 0)


@pytest.mark.parametrize("source", ["text", "random"])
def test_a_variant_has_other_prompts_at_the_same_times(source):
    lengths = Lengths("uniform", high=30, low=10)
    load = Load(2, 20, lengths, lengths, "poisson", rate=2.0, workload=Workload(source))
    plan = open_load(load, 1)
    first, again, other = (
        make_plan(each, TEXT, seed=0, repeat=0)
        for each in (plan, plan.at_rate(2.0), plan.at_rate(2.0, variant=3))
    )
    assert again == first
    for one, two in zip(first.measured, other.measured, strict=True):
        assert len(one.prompt_token_ids) == len(two.prompt_token_ids)
        assert (one.scheduled_s, one.max_tokens) == (two.scheduled_s, two.max_tokens)
    beginnings = [{r.prompt_token_ids[:8] for r in each.measured} for each in (first, other)]
    assert not beginnings[0] & beginnings[1]
