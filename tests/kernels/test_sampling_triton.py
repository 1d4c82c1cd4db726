"""Sampling in Triton against its definition, the sampler of the CPU, and the exact distribution."""

import math
import random
from dataclasses import replace

import numpy as np
import pytest
import torch
import triton
import triton.language as tl
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from tolerances import assert_close

from llmopt.errors import EngineError
from llmopt.layers import sampler
from llmopt.layers.sampler import SamplingRow
from llmopt_kernels.sampling.reference import kept_probs_reference, sample_reference, uniform
from llmopt_kernels.sampling.row_math import target_of, uniform_bits
from llmopt_kernels.sampling.triton import sample_triton, sample_with_probs_triton

SMALL = {"BLOCK": 64, "CHUNK": 128, "CAPACITY": 64}  # several blocks, and too few candidates
WIDE = {"BLOCK": 256, "CHUNK": 512, "CAPACITY": 512}  # one block, and candidates for everything
DTYPES = [torch.float32, torch.float16, torch.bfloat16]
GOLDEN = 0x9E3779B97F4A7C15
GREEDY = SamplingRow(temperature=0.0, top_k=None, top_p=1.0, seed=0, position=0)
PLAIN = replace(GREEDY, temperature=1.0)


def params_of(rows, device):
    return sampler.row_params(rows, pinned=False).to(device)


def draw(logits, rows, device, config=SMALL):
    """The tokens of rows whose logits are finite."""
    tokens, finite = sample_triton(logits.to(device), params_of(rows, device), config).tolist()
    assert finite == [1] * len(rows)
    return tokens


def defined(logits, rows):
    return [
        sample_reference(
            logits[i], row.temperature, row.top_k or 2**30, row.top_p, row.min_p, row.seed,
            row.position,
        )
        for i, row in enumerate(rows)
    ]  # fmt: skip


def random_logits(rows, vocab_size, dtype=torch.float32, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return (torch.randn(rows, vocab_size, generator=generator) * 3).to(dtype)


def random_rows(count, seed):
    chance = random.Random(seed)
    return [
        SamplingRow(
            temperature=chance.choice([0.0, 0.5, 1.0, 2.0, 5.0]),
            top_k=chance.choice([None, 1, 5, 40, 150, 1000]),
            top_p=chance.choice([1.0, 0.95, 0.5, 1e-9]),
            min_p=chance.choice([0.0, 0.0, 0.1]),
            seed=chance.randrange(2**64),
            position=chance.randrange(10_000),
        )
        for _ in range(count)
    ]


@triton.jit
def uniform_kernel(seed_ptr, position_ptr, out_ptr, N: tl.constexpr):
    index = tl.arange(0, N)
    bits = uniform_bits(tl.load(seed_ptr + index), tl.load(position_ptr + index))
    tl.store(out_ptr + index, bits.to(tl.int64, bitcast=True))


@triton.jit
def target_kernel(bits_ptr, total_ptr, out_ptr, N: tl.constexpr):
    index = tl.arange(0, N)
    bits = tl.load(bits_ptr + index).to(tl.uint64, bitcast=True)
    tl.store(out_ptr + index, target_of(bits, tl.load(total_ptr + index)))


def test_random_numbers_are_those_of_the_host_bit_for_bit(device):
    chance = random.Random(0)
    edges = [(0, 0), (2**64 - 1, 0), (2**63, 1), (2**63 - 1, 2**31), (1, 2**40)]
    drawn = [(chance.randrange(2**64), chance.randrange(2**32)) for _ in range(251)]
    pairs = edges + drawn
    seeds = torch.tensor([s - 2**64 if s >= 2**63 else s for s, _ in pairs], device=device)
    positions = torch.tensor([position for _, position in pairs], device=device)
    out = torch.zeros_like(seeds)
    uniform_kernel[(1,)](seeds, positions, out, 256)
    assert [bits * 2.0**-53 for bits in out.tolist()] == [uniform(*pair) for pair in pairs]


def test_a_target_is_the_draw_times_the_whole_rounded_down(device):
    chance = random.Random(0)
    edges = [(0, 1), (2**53 - 1, 1), (2**53 - 1, 2**62), (2**52, 2**62 - 1), (1, 2**53)]
    pairs = edges + [(chance.randrange(2**53), chance.randrange(1, 2**62)) for _ in range(123)]
    bits, totals = (torch.tensor(column, device=device) for column in zip(*pairs, strict=True))
    out = torch.zeros_like(bits)
    target_kernel[(1,)](bits, totals, out, 128)
    assert out.tolist() == [(bits * total) >> 53 for bits, total in pairs]
    assert all(target < total for target, (_, total) in zip(out.tolist(), pairs, strict=True))


@pytest.mark.parametrize("dtype", DTYPES)
def test_tokens_are_those_of_the_definition_and_of_the_cpu(dtype, device):
    logits, rows = random_logits(14, 200, dtype), random_rows(14, seed=1)
    tokens = draw(logits, rows, device)
    assert tokens == sampler.sample(logits, rows)
    if dtype == torch.float32:
        assert tokens == defined(logits, rows)
        assert tokens == draw(logits, rows, device, WIDE), "sizes of blocks change nothing"


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("vocab_size", [32_000, 128_256, 262_208])
def test_tokens_are_those_of_the_cpu_at_real_sizes(vocab_size, dtype, device):
    logits, rows = random_logits(64, vocab_size, dtype), random_rows(64, seed=2)
    tokens = sample_triton(logits.to(device), params_of(rows, device)).tolist()[0]
    expected = sampler.sample(logits, rows)
    agreed = sum(a == b for a, b in zip(tokens, expected, strict=True))
    assert agreed >= 63, "all but a draw beside the border of two tokens"


@given(st.integers(0, 2**32), st.integers(2, 150), st.sampled_from(DTYPES))
@settings(max_examples=8, deadline=None)
def test_a_row_is_sampled_alike_alone_and_among_others(seed, vocab_size, dtype):
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    logits, rows = random_logits(3, vocab_size, dtype, seed), random_rows(3, seed)
    together = draw(logits, rows, device)
    assert together == [draw(logits[i : i + 1], rows[i : i + 1], device)[0] for i in range(3)]
    assert together == sampler.sample(logits, rows)


@pytest.mark.parametrize(
    "row",
    [PLAIN, replace(PLAIN, temperature=1.3, min_p=0.2)],
    ids=["plain", "min-p"],
)
def test_draws_follow_the_exact_distribution(row, device):
    num_draws = 200
    logits = random_logits(1, 12, seed=3) / 2
    rows = [replace(row, seed=7, position=position) for position in range(num_draws)]
    config = {"BLOCK": 16, "CHUNK": 16, "CAPACITY": 16}
    counts = np.bincount(draw(logits.expand(num_draws, -1), rows, device, config), minlength=12)
    kept = kept_probs_reference(
        logits[0], row.temperature, row.top_k or 2**30, row.top_p, row.min_p
    ).numpy()
    expected = kept / kept.sum() * num_draws
    possible = expected > 0
    assert counts[~possible].sum() == 0
    common = possible & (expected >= 5)
    seen, wanted = list(counts[common]), list(expected[common])
    if num_draws - sum(wanted) > 1e-6:
        seen.append(num_draws - sum(seen))
        wanted.append(num_draws - sum(wanted))
    assert stats.power_divergence(seen, wanted, lambda_="log-likelihood").pvalue > 1e-3


def test_tokens_tied_with_the_last_one_kept_are_kept(device):
    logits = torch.tensor([3.0, 1.0, 3.0, 3.0, 0.0])
    for row in (replace(PLAIN, top_k=2), replace(PLAIN, top_p=0.5), replace(PLAIN, min_p=1.0)):
        rows = [replace(row, position=position) for position in range(12)]
        assert set(draw(logits.expand(12, -1), rows, device)) == {0, 2, 3}


def test_the_ends_of_the_unit_interval_draw_possible_tokens(device):
    """Draws of 0 and of 1 - 2^-53, where the first and the last block have no weight."""
    states = [(_unmixed(drawn) - GOLDEN) % 2**64 for drawn in (0, 2**64 - 1)]
    seeds = [(_unmixed(state) - GOLDEN) % 2**64 for state in states]
    assert [uniform(seed, 0) for seed in seeds] == [0, 1 - 2.0**-53]
    logits = torch.full((2, 250), -math.inf)
    logits[:, 80:150] = 1.0
    logits[:, 140] = 2.0
    rows = [replace(PLAIN, seed=seed) for seed in seeds]
    assert draw(logits, rows, device) == [80, 149]


def _unmixed(mixed):
    """The state that SplitMix64's output function maps to `mixed`."""
    mixed ^= (mixed >> 31) ^ (mixed >> 62)
    mixed = mixed * pow(0x94D049BB133111EB, -1, 2**64) % 2**64
    mixed ^= (mixed >> 27) ^ (mixed >> 54)
    mixed = mixed * pow(0xBF58476D1CE4E5B9, -1, 2**64) % 2**64
    return mixed ^ (mixed >> 30) ^ (mixed >> 60)


def test_every_top_k_keeps_as_many(device):
    """Each token in a bin of its own, so that a bin too few shows."""
    logits = torch.tensor([9.0, 8.5, 8.0, 7.0, 5.0, 1.0]).expand(12, -1)
    rows = [replace(PLAIN, temperature=9.0, top_k=1 + i % 6, position=i) for i in range(12)]
    tokens = draw(logits, rows, device)
    assert all(token < row.top_k for token, row in zip(tokens, rows, strict=True))
    assert tokens == sampler.sample(logits, rows)


def test_min_p_counts_after_top_p(device):
    """The weights 1, 0.5, 0.5 are 0.3 of the whole, which holds what min-p cuts."""
    logits = torch.tensor([1.0, 0.5, 0.5] + [0.1] * 40).log().expand(12, -1)
    rows = [replace(PLAIN, top_p=0.3, min_p=0.2, position=position) for position in range(12)]
    tokens = draw(logits, rows, device)
    assert set(tokens) == {0, 1, 2}
    assert tokens == sampler.sample(logits, rows)


def test_logits_whose_differences_from_the_best_round_alike_are_tied(device):
    """0.6 and 0.5 are both 99.5 below 100 in bfloat16, on a CPU as here."""
    logits = torch.tensor([100.0, 0.6, 0.5, -9.0], dtype=torch.bfloat16).expand(12, -1)
    rows = [replace(PLAIN, temperature=100.0, top_k=2, position=position) for position in range(12)]
    tokens = draw(logits, rows, device)
    assert set(tokens) == {0, 1, 2}
    assert tokens == sampler.sample(logits, rows)


@pytest.mark.parametrize("limits", [{"top_k": 150}, {"top_p": 0.5}, {"top_k": 7, "top_p": 0.9}])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_row_without_room_for_its_candidates_is_searched_whole(limits, dtype, device):
    """Logits in one bin: none of it is gathered. 100 of 300 tokens are tied as the greatest."""
    logits = torch.full((300,), 7.0)
    logits[::3] = 7.25
    logits[1::3] = 7.0 + torch.linspace(-0.2, 0.2, 100)
    rows = [replace(PLAIN, position=position, **limits) for position in range(4)]
    logits = logits.expand(4, -1).to(dtype)
    assert draw(logits, rows, device) == sampler.sample(logits, rows)


def test_the_narrowest_limits_and_temperature_are_greedy(device):
    logits = random_logits(1, 100)
    rows = [
        replace(PLAIN, position=position, **limits)
        for position in range(2)
        for limits in ({"top_k": 1}, {"top_p": 1e-9}, {"temperature": 1e-300}, {"min_p": 1.0})
    ]
    tokens = draw(logits.expand(len(rows), -1), rows, device)
    assert tokens == [int(logits.argmax())] * len(rows)


def test_greedy_takes_the_first_of_equal_logits_in_any_block(device):
    logits = random_logits(3, 200)
    logits[1, 70] = logits[1, 150] = logits[1, 65] = 50.0
    assert draw(logits, [GREEDY] * 3, device) == [
        int(logits[0].argmax()),
        65,
        int(logits[2].argmax()),
    ]


@pytest.mark.parametrize("row", [GREEDY, PLAIN, replace(PLAIN, top_k=3, top_p=0.9)])
def test_rows_that_are_not_finite_are_told_and_disturb_no_other(row, device):
    logits = random_logits(6, 150)
    logits[1, 149] = math.nan
    logits[2, 0] = math.inf
    logits[3] = -math.inf
    logits[4, :140] = -math.inf
    logits[5] = math.nan
    rows = [replace(row, seed=seed) for seed in range(6)]
    tokens, finite = sample_triton(logits.to(device), params_of(rows, device), SMALL).tolist()
    assert finite == [1, 0, 0, 0, 1, 0]
    assert all(0 <= token < 150 for token in tokens)
    good = [0, 4]
    assert [tokens[i] for i in good] == sampler.sample(logits[good], [rows[i] for i in good])
    assert tokens[4] >= 140


def test_no_rows_have_no_tokens(device):
    assert sample_triton(torch.zeros(0, 9, device=device), params_of([], device)).shape == (2, 0)


def test_probabilities_are_those_that_tokens_are_drawn_from(device):
    rows = [row for row in random_rows(20, seed=5) if row.temperature > 0][:8]
    logits = random_logits(len(rows), 150)
    table, probs = sample_with_probs_triton(logits.to(device), params_of(rows, device), SMALL)
    assert table[0].tolist() == draw(logits, rows, device)
    expected = sampler.distribution(logits, rows)
    assert torch.equal(probs.cpu() > 0, expected > 0)
    assert_close(probs, expected)


@pytest.fixture
def sampler_in_triton(monkeypatch):
    monkeypatch.setattr(sampler, "uses_triton", lambda tensor: True)


def test_the_sampler_reads_what_the_kernel_drew(sampler_in_triton, device):
    logits = random_logits(2, 40).to(device)
    before = logits.clone()
    ranking = logits[0].argsort(descending=True).tolist()
    banned = (ranking[0], ranking[2])
    rows = [replace(GREEDY, banned_token_ids=banned), GREEDY]
    pending = sampler.sample_async(logits, rows)
    assert pending.token_ids.device.type == device.type
    assert pending.token_ids.tolist() == pending.read() == sampler.sample(logits, rows)
    assert pending.read() == [ranking[1], int(logits[1].argmax())]
    assert torch.equal(logits, before)
    logits[1, 3] = math.nan
    with pytest.raises(EngineError, match=r"not finite numbers in torch\.float32"):
        sampler.sample_async(logits, rows).read()


def test_a_cpu_samples_at_once_and_reads_the_same():
    logits, rows = random_logits(4, 50), random_rows(4, seed=0)
    pending = sampler.sample_async(logits, rows)
    assert pending.token_ids.tolist() == pending.read() == sampler.sample(logits, rows)
    with pytest.raises(EngineError):
        sampler.sample_async(logits * math.inf, rows)
