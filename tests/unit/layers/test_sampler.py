import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from torch import Tensor

from llmopt.errors import EngineError
from llmopt.layers.sampler import SamplingRow, distribution, sample, uniform

GREEDY = SamplingRow(temperature=0.0, top_k=None, top_p=1.0, seed=0, position=0)
PLAIN = replace(GREEDY, temperature=1.0)


def random_logits(rows: int, vocab_size: int, seed: int = 0) -> Tensor:
    return torch.randn(rows, vocab_size, generator=torch.Generator().manual_seed(seed)) * 2


def exact_distribution(logits: Tensor, row: SamplingRow) -> np.ndarray:
    """Temperature, top-k, top-p, min-p by their definitions, one token at a time, in float64."""
    scores = logits.double().numpy() / row.temperature
    order = sorted(range(len(scores)), key=lambda token: -scores[token])
    order = order[: row.top_k]
    probs = np.exp(scores - scores.max())
    total = sum(probs[token] for token in order)
    kept, reached = [], 0.0
    for token in order:
        kept.append(token)
        reached += probs[token] / total
        if reached >= row.top_p:
            break
    kept = [token for token in kept if probs[token] >= row.min_p * probs[order[0]]]
    result = np.zeros(len(scores))
    result[kept] = probs[kept] / probs[kept].sum()
    return result


@pytest.mark.parametrize("seed", [0, 12345])
@pytest.mark.parametrize(
    "row",
    [
        PLAIN,
        replace(PLAIN, temperature=0.5),
        replace(PLAIN, temperature=1.7),
        replace(PLAIN, top_k=4),
        replace(PLAIN, top_p=0.8),
        replace(PLAIN, min_p=0.15),
        replace(PLAIN, temperature=1.3, top_k=6, top_p=0.85, min_p=0.2),
    ],
    ids=["plain", "cold", "hot", "top-k", "top-p", "min-p", "all four"],
)
def test_draws_follow_the_exact_distribution(row: SamplingRow, seed: int) -> None:
    num_draws = 20_000
    logits = random_logits(1, 12)
    rows = [replace(row, seed=seed, position=position) for position in range(num_draws)]
    counts = np.bincount(sample(logits.expand(num_draws, -1), rows), minlength=12)
    expected = exact_distribution(logits[0], row) * num_draws
    possible = expected > 0
    assert counts[~possible].sum() == 0
    assert stats.chisquare(counts[possible], expected[possible]).pvalue > 1e-3


def test_the_chi_square_test_sees_a_wrong_temperature() -> None:
    num_draws = 20_000
    logits = random_logits(1, 12)
    rows = [replace(PLAIN, temperature=1.05, position=i) for i in range(num_draws)]
    counts = np.bincount(sample(logits.expand(num_draws, -1), rows), minlength=12)
    assert stats.chisquare(counts, exact_distribution(logits[0], PLAIN) * num_draws).pvalue < 1e-3


def test_greedy_is_the_most_likely_token_in_each_dtype() -> None:
    logits = random_logits(5, 100)
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        rounded = logits.to(dtype)
        assert sample(rounded, [GREEDY] * 5) == rounded.argmax(-1).tolist()


def test_the_narrowest_top_k_top_p_min_p_and_temperature_are_greedy() -> None:
    logits = random_logits(1, 100)
    best = [int(logits.argmax())]
    for position in range(50):
        at = replace(PLAIN, position=position)
        assert sample(logits, [replace(at, top_k=1)]) == best
        assert sample(logits, [replace(at, top_p=1e-9)]) == best
        assert sample(logits, [replace(at, temperature=1e-30)]) == best
        assert sample(logits, [replace(at, min_p=1.0)]) == best


def test_a_top_k_beyond_the_vocabulary_keeps_all() -> None:
    logits = random_logits(1, 10)
    for position in range(20):
        row = replace(PLAIN, position=position)
        assert sample(logits, [replace(row, top_k=1000)]) == sample(logits, [row])


def test_tokens_tied_with_the_last_one_kept_are_kept() -> None:
    logits = torch.tensor([[3.0, 1.0, 3.0, 3.0, 0.0]])
    for row in (replace(PLAIN, top_k=2), replace(PLAIN, top_p=0.5), replace(PLAIN, min_p=1.0)):
        drawn = {sample(logits, [replace(row, position=i)])[0] for i in range(200)}
        assert drawn == {0, 2, 3}


def test_of_equal_greatest_logits_the_first_is_chosen() -> None:
    logits = torch.zeros(2, 1000)
    logits[0, [300, 700, 999]] = logits[1, [5, 6]] = 2.0
    for dtype in (torch.float32, torch.bfloat16, torch.float64):
        assert sample(logits.to(dtype), [GREEDY] * 2) == [300, 5]


@pytest.mark.parametrize("top_p", [1e-9, 0.3, 0.8, 0.95, 1 - 1e-5, 1 - 2.0**-53])
@pytest.mark.parametrize("spread", [0.0, 1.0, 4.0, 20.0])
def test_the_nucleus_is_that_of_all_tokens_sorted(top_p: float, spread: float) -> None:
    logits = random_logits(1, 5000) * spread / 2
    kept = distribution(logits, [replace(PLAIN, top_p=top_p)])[0] > 0
    probs = torch.softmax(logits[0] - logits.max(), dim=-1)
    ranked = probs.sort(descending=True).values
    last = min(4999, int((ranked.double().cumsum(-1) < top_p).sum()))
    assert torch.equal(kept, (probs >= ranked[last]) & (probs > 0))


def test_a_large_nucleus_is_drawn_from_evenly() -> None:
    logits = torch.zeros(1, 5000)
    logits[0, :2000] = 2.0  # 2000 tokens hold 83 %, evenly
    drawn = {sample(logits, [replace(PLAIN, top_p=0.8, position=i)])[0] for i in range(300)}
    assert max(drawn) < 2000
    assert len({token // 500 for token in drawn}) == 4
    drawn = {sample(logits, [replace(PLAIN, top_p=0.9, position=i)])[0] for i in range(300)}
    assert max(drawn) >= 2000


@pytest.mark.parametrize(("draw", "token"), [(0.0, 1), (1 - 2.0**-53, 8)])
def test_the_ends_of_the_unit_interval_draw_possible_tokens(
    monkeypatch: pytest.MonkeyPatch, draw: float, token: int
) -> None:
    monkeypatch.setattr("llmopt.layers.sampler.uniform", lambda seed, position: draw)
    logits = torch.tensor([[0.0, 5, 5, 5, 5, 5, 5, 5, 5, 0]])  # the first and last are cut off
    assert sample(logits, [replace(PLAIN, top_k=8)]) == [token]


@given(
    st.lists(
        st.builds(
            SamplingRow,
            temperature=st.sampled_from([0.0, 0.3, 1.0, 2.0]),
            top_k=st.none() | st.integers(1, 2500),
            top_p=st.floats(0.05, 1.0),
            min_p=st.sampled_from([0.0, 0.01, 0.5]),
            seed=st.integers(0, 2**64 - 1),
            position=st.integers(0, 10_000),
            banned_token_ids=st.sampled_from([(), (3,), (0, 7)]),
        ),
        min_size=1,
        max_size=6,
    )
)
def test_a_row_is_sampled_alike_alone_and_among_others(rows: list[SamplingRow]) -> None:
    logits = random_logits(len(rows), 2000, seed=len(rows))
    singles = [sample(logits[i : i + 1], [row])[0] for i, row in enumerate(rows)]
    assert sample(logits, rows) == singles


def test_banned_tokens_are_never_chosen_and_logits_stay_as_they_were() -> None:
    logits = random_logits(1, 10)
    before = logits.clone()
    ranking = logits[0].argsort(descending=True).tolist()
    banned = (ranking[0], ranking[2])
    assert sample(logits, [replace(GREEDY, banned_token_ids=banned)]) == [ranking[1]]
    drawn = {
        sample(logits, [replace(PLAIN, position=i, banned_token_ids=banned)])[0] for i in range(300)
    }
    assert not drawn & set(banned)
    assert torch.equal(logits, before)


def test_no_global_generator_is_used() -> None:
    state = torch.get_rng_state()
    numpy_state = np.random.get_state(legacy=False)["state"]["key"].copy()
    sample(random_logits(2, 50), [PLAIN, GREEDY])
    assert torch.equal(torch.get_rng_state(), state)
    assert np.array_equal(np.random.get_state(legacy=False)["state"]["key"], numpy_state)


@pytest.mark.parametrize("broken", [math.nan, math.inf])
@pytest.mark.parametrize("row", [GREEDY, PLAIN])
def test_logits_that_are_not_finite_are_an_error(broken: float, row: SamplingRow) -> None:
    logits = random_logits(2, 10)
    logits[1, 4] = broken
    with pytest.raises(EngineError, match=r"not finite numbers in torch\.float32"):
        sample(logits, [row, row])


def test_uniform_is_splitmix64() -> None:
    """The first outputs of the published generator for state 1234567."""
    expected = [6457827717110365317, 3203168211198807973, 9817491932198370423]
    golden = 0x9E3779B97F4A7C15
    seed = (_unmixed(1234567) - golden) % 2**64
    assert [uniform(seed, i) for i in range(3)] == [(e >> 11) * 2.0**-53 for e in expected]


def _unmixed(mixed: int) -> int:
    """The state that SplitMix64's output function maps to `mixed`."""
    mask = 2**64 - 1
    mixed ^= (mixed >> 31) ^ (mixed >> 62)
    mixed = mixed * pow(0x94D049BB133111EB, -1, 2**64) & mask
    mixed ^= (mixed >> 27) ^ (mixed >> 54)
    mixed = mixed * pow(0xBF58476D1CE4E5B9, -1, 2**64) & mask
    return mixed ^ (mixed >> 30) ^ (mixed >> 60)


def test_uniform_is_uniform_along_positions_and_across_seeds() -> None:
    by_position = [uniform(7, position) for position in range(5000)]
    by_seed = [uniform(seed, 0) for seed in range(5000)]
    for draws in (by_position, by_seed):
        assert min(draws) >= 0
        assert max(draws) < 1
        assert stats.kstest(draws, "uniform").pvalue > 1e-3
        assert abs(np.corrcoef(draws[:-1], draws[1:])[0, 1]) < 0.05
    assert abs(np.corrcoef(by_position, by_seed)[0, 1]) < 0.05
