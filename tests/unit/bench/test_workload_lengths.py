import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmopt.bench.workload_lengths import SizeSource
from llmopt.errors import UsageError
from llmopt.recipe.loads import Lengths

UNIFORM = Lengths("uniform", high=20, low=5)
LOGNORMAL = Lengths("lognormal", high=10_000, mean=200.0, std=150.0)


def prompts(lengths, number=20_000, seed=(0,)):
    return [size.prompt_tokens for size in SizeSource.open(lengths, 7).draw(number, seed)]


@given(
    lengths=st.sampled_from(
        [12, UNIFORM, LOGNORMAL, Lengths("lognormal", high=90, low=80, mean=50.0, std=99.0)]
    ),
    number=st.integers(0, 40),
    seed=st.integers(0, 2**40),
)
def test_lengths_stay_within_their_bounds_and_the_seed_decides(lengths, number, seed):
    source = SizeSource.open(lengths, lengths)
    sizes = source.draw(number, (seed,))
    assert sizes == source.draw(number, (seed,))
    assert source.draw(number + 5, (seed,))[:number] == sizes
    low, high = (12, 12) if isinstance(lengths, int) else (lengths.low, lengths.high)
    for size in sizes:
        assert low <= size.prompt_tokens <= high
        assert low <= size.output_tokens <= high


def test_uniform_lengths_reach_both_ends_alike():
    values, counts = np.unique(prompts(UNIFORM), return_counts=True)
    assert values.tolist() == list(range(5, 21))
    assert counts == pytest.approx(20_000 / 16, rel=0.15)


def test_lognormal_lengths_have_the_mean_and_deviation_that_were_asked_for():
    drawn = np.array(prompts(LOGNORMAL, 50_000))
    assert drawn.mean() == pytest.approx(200, rel=0.03)
    assert drawn.std() == pytest.approx(150, rel=0.06)
    assert np.log(drawn).std() == pytest.approx(np.sqrt(np.log(1 + 0.75**2)), rel=0.02)


def test_prompts_and_outputs_are_drawn_apart():
    sizes = SizeSource.open(UNIFORM, UNIFORM).draw(2000, (0,))
    pairs = np.array([(size.prompt_tokens, size.output_tokens) for size in sizes])
    assert abs(np.corrcoef(pairs.T)[0, 1]) < 0.1


def test_one_table_gives_prompts_and_outputs_of_one_row(tmp_path):
    table = [[10, 1], [20, 2], [30, 3], [4000, 400]]
    (tmp_path / "t.json").write_text(json.dumps(table))
    lengths = Lengths("empirical", high=1000, table=str(tmp_path / "t.json"))
    source = SizeSource.open(lengths, lengths)
    drawn = {(size.prompt_tokens, size.output_tokens) for size in source.draw(500, (0,))}
    assert drawn == {(10, 1), (20, 2), (30, 3), (1000, 400)}
    prompt, output = source.specs()
    assert (prompt.kind, prompt.low, prompt.high, prompt.mean) == ("empirical", 10, 1000, 265)
    assert (output.high, output.source) == (400, "t.json")


def test_a_table_may_have_single_numbers_or_be_a_trace(tmp_path):
    (tmp_path / "t.json").write_text("[3, 5]")
    assert set(prompts(Lengths("empirical", 99, table=str(tmp_path / "t.json")), 99)) == {3, 5}
    row = {"timestamp": 0, "input_length": 8, "output_length": 6}
    (tmp_path / "t.jsonl").write_text(json.dumps(row))
    lengths = Lengths("empirical", 99, table=str(tmp_path / "t.jsonl"))
    (size,) = SizeSource.open(lengths, lengths).draw(1, (0,))
    assert (size.prompt_tokens, size.output_tokens) == (8, 6)


@pytest.mark.parametrize("text", ["", "{", "{}", "[]", '["a"]', "[1.5]", "[[1, 2, 3]]", "[[1], 2]"])
def test_what_is_no_table_is_refused(tmp_path, text):
    (tmp_path / "t.json").write_text(text)
    with pytest.raises(UsageError, match=r"t\.json"):
        SizeSource.open(Lengths("empirical", 99, table=str(tmp_path / "t.json")), 1)


def test_what_a_result_file_keeps():
    fixed, uniform = SizeSource.open(12, UNIFORM).specs()
    assert (fixed.kind, fixed.mean, fixed.low, fixed.high) == ("fixed", 12, 12, 12)
    assert (uniform.kind, uniform.mean, uniform.low, uniform.high) == ("uniform", 12.5, 5, 20)
    lognormal, _ = SizeSource.open(LOGNORMAL, 1).specs()
    assert lognormal.sigma == pytest.approx(np.sqrt(np.log(1 + 0.75**2)))
