"""Rejection sampling in Triton against its definition and the rejection sampler of the CPU."""

import math
import random
from dataclasses import replace

import pytest
import torch
from tolerances import assert_close

from llmopt.errors import EngineError
from llmopt.layers import rejection_sampler, sampler
from llmopt.layers.rejection_sampler import Draft, draw_drafts, verify
from llmopt.layers.sampler import SamplingRow, distribution
from llmopt_kernels.rejection.draft_params import DraftFacts, DraftKind, pack_drafts
from llmopt_kernels.rejection.reference import count_guessed_reference, reject_reference
from llmopt_kernels.rejection.triton import verify_triton

VOCAB_SIZE = 150
CONFIG = {"BLOCK": 64, "CHUNK": 128, "CAPACITY": 64}
PLAIN = SamplingRow(temperature=1.0, top_k=None, top_p=1.0, seed=0, position=0)


def random_logits(count, seed, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    return (torch.randn(count, VOCAB_SIZE, generator=generator) * 2).to(dtype)


def random_batch(count, seed, dtype):
    """Logits, rows and drafts of requests of every kind."""
    chance = random.Random(seed)
    logits, rows, drafts = [], [], []
    for _ in range(count):
        row = SamplingRow(
            temperature=chance.choice([0.0, 0.6, 1.0, 2.0]),
            top_k=chance.choice([None, 5, 50]),
            top_p=chance.choice([1.0, 0.9]),
            min_p=chance.choice([0.0, 0.0, 0.1]),
            seed=chance.randrange(2**64),
            position=chance.randrange(1000),
        )
        length = chance.choice([0, 1, 3])
        own = [replace(row, position=row.position + j) for j in range(length + 1)]
        target = random_logits(length + 1, chance.randrange(2**32), dtype)
        noise = 0.5 * random_logits(length, chance.randrange(2**32), dtype)
        kind = chance.choice(["guess", "drawn", "drawn", "drawn", "forced"])
        if kind == "drawn" and row.temperature > 0:
            draft = Draft(*_tuple_first(draw_drafts(target[:length] + noise, own[:length])))
        else:
            forced = chance.randint(0, length) if kind == "forced" else None
            draft = Draft(tuple(target[:length].argmax(-1).tolist()), None, forced)
        logits.append(target)
        rows += own
        drafts.append(draft)
    return torch.cat(logits), rows, drafts


def _tuple_first(drawn):
    return tuple(drawn[0]), drawn[1]


def check(logits, rows, facts, probs, device):
    """Run the kernels on what lies on the host; no row is broken."""
    params = sampler.row_params(rows, pinned=False).to(device)
    drafts = pack_drafts(facts, probs, pinned=False).to(device)
    taken, tokens, finite = verify_triton(logits.to(device), params, drafts, CONFIG).tolist()
    assert finite == [1] * len(facts)
    return list(zip(taken, tokens, strict=True))


def drawn_requests(count, target, proposed, token_id):
    """Requests of one drawn token each, of seeds 0 to count - 1, with the same p and q."""
    rows = [replace(PLAIN, seed=s, position=j) for s in range(count) for j in range(2)]
    facts = [DraftFacts((token_id,), DraftKind.DRAWN)] * count
    logits = target.expand(2 * count, -1)
    return logits, rows, facts, proposed.expand(count, -1).contiguous()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("seed", [0, 1])
def test_results_are_those_of_the_cpu(seed, dtype, device, monkeypatch):
    logits, rows, drafts = random_batch(10, seed, dtype)
    expected = verify(logits, rows, drafts)
    drawn = [i for i, draft in enumerate(drafts) if draft.probs is not None and len(draft)]
    assert any(len(expected[i]) <= len(drafts[i]) for i in drawn), "some are refused"
    monkeypatch.setattr(rejection_sampler, "uses_triton", lambda tensor: True)
    assert verify(logits.to(device), rows, drafts) == expected


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_results_are_those_of_the_definition_at_a_real_size(dtype, device):
    vocab_size, count = 128_256, 64
    generator = torch.Generator().manual_seed(0)
    logits = (torch.randn(2 * count, vocab_size, generator=generator) * 4).to(dtype)
    rows = [replace(PLAIN, seed=s, position=j) for s in range(count) for j in range(2)]
    target = distribution(logits[::2], rows[::2])
    proposed = torch.softmax(logits[::2].double() * 0.7, dim=-1)
    token_ids = proposed.multinomial(1, generator=generator)[:, 0].tolist()
    facts = [DraftFacts((token_id,), DraftKind.DRAWN) for token_id in token_ids]
    params = sampler.row_params(rows, pinned=False).to(device)
    drafts = pack_drafts(facts, proposed, pinned=False).to(device)
    taken, tokens, _ = verify_triton(logits.to(device), params, drafts).tolist()
    agreed = 0
    for i, token_id in enumerate(token_ids):
        count_taken, token = reject_reference(target[i][None], proposed[i][None], [token_id], i, 0)
        agreed += taken[i] == count_taken and token in (None, tokens[i])
    assert agreed >= count - 1, "all but a draw beside the border of two tokens"


def test_drawn_tokens_are_taken_and_replaced_by_the_definition(device):
    count = 20
    target, other = random_logits(2, seed=3)
    proposed = torch.softmax(other.double(), dim=-1)
    p = distribution(target[None], [PLAIN])
    token_id = int((p[0] / proposed - 0.5).abs().argmin())  # taken half of the time
    requests = drawn_requests(count, target, proposed[None], token_id)
    results = check(*requests, device)
    expected = [reject_reference(p, proposed[None], [token_id], s, 0) for s in range(count)]
    assert [taken for taken, _ in results] == [taken for taken, _ in expected]
    refused = [(token, e[1]) for (_, token), e in zip(results, expected, strict=True) if e[0] == 0]
    assert 4 < len(refused) < count - 4
    assert all(token == replacement for token, replacement in refused)


def test_what_is_drawn_from_the_target_itself_is_taken(device):
    target = random_logits(4, seed=5)
    rows = [replace(PLAIN, seed=11, position=j) for j in range(4)]
    token_ids, probs = draw_drafts(target[:3], rows[:3])
    probs = probs * (1 - 1e-6)  # beyond the rounding of float32 exponentials
    results = check(target, rows, [DraftFacts(token_ids, DraftKind.DRAWN)], probs, device)
    assert results == [(3, sampler.sample(target[3:], rows[3:])[0])]


def test_where_nothing_is_left_of_p_minus_q_the_draw_is_from_p(device):
    count = 12
    target = random_logits(1, seed=6)[0]
    p = distribution(target[None], [PLAIN])
    token_id = int(target.argmax())
    results = check(*drawn_requests(count, target, 2 * p, token_id), device)
    expected = [reject_reference(p, 2 * p, [token_id], s, 0) for s in range(count)]
    refused = [(token, e[1]) for (_, token), e in zip(results, expected, strict=True) if e[0] == 0]
    assert 2 < len(refused) < count
    assert all(token == replacement for token, replacement in refused)


def test_guesses_are_taken_while_the_target_says_the_same(device):
    logits = random_logits(8, seed=7)
    rows = [replace(PLAIN, temperature=t, position=j) for t in (0.0, 1.0) for j in range(4)]
    plain = sampler.sample(logits, rows)
    right = [plain[:3], plain[4:7]]
    wrong = [[right[0][0], right[0][1] ^ 1, right[0][2]], [right[1][0] ^ 1, *right[1][1:]]]
    for guesses in (right, wrong):
        facts = [DraftFacts(own, DraftKind.GUESSED) for own in guesses]
        counts = [count_guessed_reference(guesses[i], plain[4 * i : 4 * i + 4]) for i in (0, 1)]
        assert counts == ([3, 3] if guesses is right else [1, 0])
        assert check(logits, rows, facts, None, device) == [
            (counts[0], plain[counts[0]]),
            (counts[1], plain[4 + counts[1]]),
        ]


def test_forced_drafts_and_empty_ones(device):
    logits = random_logits(6, seed=8)
    rows = [replace(PLAIN, position=j) for j in range(6)]
    plain = sampler.sample(logits, rows)
    facts = [
        DraftFacts((3, 4), DraftKind.FORCED, num_taken=1),
        DraftFacts((), DraftKind.GUESSED),
        DraftFacts((9,), DraftKind.FORCED, num_taken=0),
    ]
    expected = [(1, plain[1]), (0, plain[3]), (0, plain[4])]
    assert check(logits, rows, facts, None, device) == expected


def test_a_request_with_a_broken_row_is_told(device):
    logits = random_logits(5, seed=9)
    logits[1, 7] = math.nan
    rows = [replace(PLAIN, position=j) for j in range(5)]
    facts = [DraftFacts((3,), DraftKind.GUESSED), DraftFacts((4, 5), DraftKind.GUESSED)]
    params = sampler.row_params(rows, pinned=False).to(device)
    drafts = pack_drafts(facts, None, pinned=False).to(device)
    table = verify_triton(logits.to(device), params, drafts, CONFIG)
    assert table[2].tolist() == [0, 1]


def test_the_layer_raises_bans_and_drafts_as_on_a_cpu(device, monkeypatch):
    target = random_logits(3, seed=10)
    rows = [replace(PLAIN, seed=5, position=j, banned_token_ids=(2,)) for j in range(3)]
    expected_ids, expected_probs = draw_drafts(target[:2], rows[:2])
    monkeypatch.setattr(rejection_sampler, "uses_triton", lambda tensor: True)
    token_ids, probs = draw_drafts(target[:2].to(device), rows[:2])
    assert token_ids == expected_ids
    assert_close(probs, expected_probs)
    assert probs[:, 2].tolist() == [0, 0]
    target[2, 0] = math.inf
    with pytest.raises(EngineError, match="not finite numbers"):
        verify(target.to(device), rows, [Draft(tuple(token_ids), probs)])
