import json
import random

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from llmopt.bench.workload_prompts import cut_prompts, random_prompts, read_prompts
from llmopt.errors import UsageError

TEXT = random.Random(0).choices(range(500), k=5000)


def prompts(number=12, prompt_tokens=32, seed=(0, 1), text=TEXT):
    return cut_prompts(text, [prompt_tokens] * number, seed)


@given(
    lengths=st.lists(st.integers(1, 200), min_size=1, max_size=30),
    seed=st.tuples(st.integers(0, 2**32), st.integers(0, 9)),
    make=st.sampled_from([cut_prompts, random_prompts]),
)
def test_prompts_have_their_lengths_and_begin_differently(lengths, seed, make):
    found = make(TEXT, lengths, seed)
    assert [len(prompt) for prompt in found] == lengths
    size = min(8, *lengths) if make is random_prompts else 1
    assert len({prompt[:size] for prompt in found}) == len(found)
    assert make(TEXT, lengths, seed) == found


def test_a_text_of_few_tokens_gives_prompts_that_differ_a_little_later():
    text = random.Random(1).choices(range(5), k=4000)
    found = prompts(number=100, prompt_tokens=20, text=text)
    assert len({prompt[:2] for prompt in found}) == 25
    assert len({prompt[:8] for prompt in found}) == 100


def test_prompts_are_pieces_of_the_text():
    text = list(range(5000))
    for prompt in prompts(text=text):
        assert prompt == tuple(range(prompt[0], prompt[0] + 32))


def test_seed_decides():
    assert prompts(seed=(0, 1)) == prompts(seed=(0, 1))
    assert prompts(seed=(0, 1)) != prompts(seed=(0, 2))
    assert prompts(seed=(1, 1)) != prompts(seed=(0, 1))


def test_places_are_spread_over_the_text():
    starts = [p[0] for p in prompts(number=400, text=list(range(5000)))]
    assert min(starts) < 100
    assert max(starts) > 4800
    assert sorted(starts) != starts


def test_the_whole_text_can_be_one_prompt():
    assert prompts(1, 5000) == [tuple(TEXT)]


@pytest.mark.parametrize("text", [[], [1, 2, 3], TEXT[:31]])
def test_short_text_is_refused(text):
    with pytest.raises(
        UsageError, match=rf"12 prompts of up to 32 tokens.*{len(text)} tokens has only 0"
    ):
        prompts(text=text)


def test_text_that_repeats_itself_is_refused():
    with pytest.raises(UsageError, match="only 3 that begin differently"):
        prompts(text=[1, 2, 3] * 1000)
    with pytest.raises(UsageError, match="more than the 3 different tokens"):
        random_prompts([1, 2, 3] * 1000, [2] * 5, (0,))


def test_random_tokens_are_those_of_the_text_all_alike():
    text = [7] * 1000 + [3, 5]
    (prompt,) = random_prompts(text, [30_000], (0,))
    assert {token: prompt.count(token) for token in (3, 5, 7)} == pytest.approx(
        {3: 10_000, 5: 10_000, 7: 10_000}, rel=0.05
    )


def test_the_users_prompts_are_read_line_by_line(tmp_path):
    path = tmp_path / "p.jsonl"
    path.write_text('{"prompt": "abc", "output_tokens": 4}\n\n{"prompt": "dé", "id": 1}\n')
    first, second = read_prompts(path, lambda text: list(text.encode()))
    assert (first.token_ids, first.output_tokens) == (tuple(b"abc"), 4)
    assert (second.token_ids, second.output_tokens) == (tuple("dé".encode()), None)


@given(st.lists(st.text(st.characters(exclude_categories=["Cs"]), min_size=1), min_size=1))
@example(["one\u2028two\u0085three\u2029four", "\r\n\x0c"])
def test_any_text_can_be_a_prompt(tmp_path_factory, texts):
    path = tmp_path_factory.mktemp("prompts") / "p.jsonl"
    lines = [json.dumps({"prompt": text}, ensure_ascii=False) for text in texts]
    path.write_text("\n".join(lines), encoding="utf-8")
    found = read_prompts(path, lambda text: list(text.encode()))
    assert [bytes(prompt.token_ids).decode() for prompt in found] == texts


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "there are no prompts"),
        ("{", r"p\.jsonl:1: not JSON"),
        ('{"prompt": "a"}\n[]', r'p\.jsonl:2: there is no "prompt"'),
        ('{"prompt": ""}', r'p\.jsonl:1: there is no "prompt"'),
        ('{"prompt": "a", "output_tokens": 0}', "output_tokens is 0"),
        ('{"prompt": "a", "output_tokens": true}', "output_tokens is True"),
    ],
)
def test_prompts_that_cannot_be_read_are_named_with_their_line(tmp_path, text, message):
    path = tmp_path / "p.jsonl"
    path.write_text(text)
    with pytest.raises(UsageError, match=message):
        read_prompts(path, lambda text: text.encode())
    with pytest.raises(UsageError, match="cannot be read"):
        read_prompts(tmp_path / "none.jsonl", lambda text: text.encode())
