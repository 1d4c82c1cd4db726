import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmopt.bench.workload import make_prompts
from llmopt.errors import UsageError

TEXT = random.Random(0).choices(range(500), k=5000)


def prompts(num_warmup=2, num_measured=10, prompt_tokens=32, seed=(0, 1), text=TEXT):
    return make_prompts(
        text,
        num_warmup=num_warmup,
        num_measured=num_measured,
        prompt_tokens=prompt_tokens,
        seed=seed,
    )


@given(
    num_warmup=st.integers(0, 5),
    num_measured=st.integers(1, 30),
    prompt_tokens=st.integers(1, 200),
    seed=st.tuples(st.integers(0, 2**32), st.integers(0, 9)),
)
def test_prompts_have_the_length_and_begin_differently(
    num_warmup, num_measured, prompt_tokens, seed
):
    run = prompts(num_warmup, num_measured, prompt_tokens, seed)
    assert (len(run.warmup), len(run.measured)) == (num_warmup, num_measured)
    every = [*run.warmup, *run.measured]
    assert {len(prompt) for prompt in every} == {prompt_tokens}
    assert len({prompt[0] for prompt in every}) == len(every)


def test_prompts_are_pieces_of_the_text():
    text = list(range(5000))
    for prompt in prompts(text=text).measured:
        assert prompt == tuple(range(prompt[0], prompt[0] + 32))


def test_seed_decides():
    assert prompts(seed=(0, 1)) == prompts(seed=(0, 1))
    assert prompts(seed=(0, 1)) != prompts(seed=(0, 2))
    assert prompts(seed=(1, 1)) != prompts(seed=(0, 1))


def test_places_are_spread_over_the_text():
    starts = [p[0] for p in prompts(num_measured=400, text=list(range(5000))).measured]
    assert min(starts) < 100
    assert max(starts) > 4800
    assert sorted(starts) != starts


def test_the_whole_text_can_be_one_prompt():
    assert prompts(0, 1, 5000).measured == (tuple(TEXT),)


@pytest.mark.parametrize("text", [[], [1, 2, 3], TEXT[:31]])
def test_short_text_is_refused(text):
    with pytest.raises(
        UsageError, match=rf"12 prompts of 32 tokens.*{len(text)} tokens has only 0"
    ):
        prompts(text=text)


def test_text_that_repeats_itself_is_refused():
    with pytest.raises(UsageError, match="only 3 that begin differently"):
        prompts(text=[1, 2, 3] * 1000)
