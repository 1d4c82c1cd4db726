"""Speculative sampling against the distribution that it must leave as it is."""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from torch import Tensor

from llmopt.layers.rejection_sampler import Draft, draw_drafts, verify
from llmopt.layers.sampler import SamplingRow, distribution, sample

VOCAB_SIZE = 6
NUM_TRIALS = 5000
GREEDY = SamplingRow(temperature=0.0, top_k=None, top_p=1.0, seed=0, position=0)
PLAIN = replace(GREEDY, temperature=1.0)

Model = Callable[[Sequence[Sequence[int]]], Tensor]  # continuations so far -> logits [R, V]


def table_model(seed: int, scale: float = 1.5) -> Model:
    """Logits that depend on the last token."""
    table = scale * torch.randn(
        VOCAB_SIZE + 1, VOCAB_SIZE, generator=torch.Generator().manual_seed(seed)
    )

    def run(pasts: Sequence[Sequence[int]]) -> Tensor:
        return table[[past[-1] if past else VOCAB_SIZE for past in pasts]]

    return run


def disjoint_model(_seed: int) -> Model:
    """What the target almost never says."""
    target = table_model(0, scale=6)
    return lambda pasts: -target(pasts)


def speculate(target: Model, draft: Model | None, row: SamplingRow, k: int, length: int) -> Counter:
    """Continuations of `length` tokens of many seeds, by steps that draft up to k tokens.

    draft None: guesses, the most likely token of another model.
    """
    guesser = table_model(1)
    texts: list[list[int]] = [[] for _ in range(NUM_TRIALS)]
    while active := [seed for seed in range(NUM_TRIALS) if len(texts[seed]) < length]:
        drafted: list[list[int]] = [[] for _ in active]
        probs: list[list[Tensor]] = [[] for _ in active]
        for i in range(k):
            pasts = [texts[seed] + own for seed, own in zip(active, drafted, strict=True)]
            rows = [replace(row, seed=seed, position=len(texts[seed]) + i) for seed in active]
            if draft is None:
                token_ids = guesser(pasts).argmax(-1).tolist()
            else:
                token_ids, used = draw_drafts(draft(pasts), rows)
                for one, own in zip(probs, used, strict=True):
                    one.append(own)
            for own, token_id in zip(drafted, token_ids, strict=True):
                own.append(token_id)
        pasts = [
            texts[seed] + own[:i]
            for seed, own in zip(active, drafted, strict=True)
            for i in range(k + 1)
        ]
        rows = [
            replace(row, seed=seed, position=len(texts[seed]) + i)
            for seed in active
            for i in range(k + 1)
        ]
        drafts = [
            Draft(tuple(own), torch.stack(q) if q else None)
            for own, q in zip(drafted, probs, strict=True)
        ]
        for seed, token_ids in zip(active, verify(target(pasts), rows, drafts), strict=True):
            texts[seed] += token_ids
    return Counter(tuple(text[:length]) for text in texts)


def expected_counts(target: Model, row: SamplingRow, length: int) -> dict[tuple[int, ...], float]:
    chances = {(): float(NUM_TRIALS)}
    for _ in range(length):
        texts = list(chances)
        probs = distribution(target(texts), [row] * len(texts)).numpy()
        chances = {
            (*text, token): chances[text] * p
            for text, row_probs in zip(texts, probs, strict=True)
            for token, p in enumerate(row_probs)
            if p > 0
        }
    return chances


def g_test(counts: Counter, expected: dict[tuple[int, ...], float]) -> float:
    """The p-value; continuations that are too rare for the test are one class."""
    assert set(counts) <= set(expected), "nothing impossible was drawn"
    common = [text for text in expected if expected[text] >= 5]
    seen = [counts[text] for text in common]
    wanted = [expected[text] for text in common]
    rest = NUM_TRIALS - sum(wanted)
    if rest > 1e-6:
        seen.append(NUM_TRIALS - sum(seen))
        wanted.append(rest)
    return float(stats.power_divergence(seen, wanted, lambda_="log-likelihood").pvalue)


TARGET = table_model(0)
PROPOSERS = {
    "random q": table_model(1),
    "q is p": TARGET,
    "disjoint q": disjoint_model(0),
    "guesses": None,
}


@pytest.mark.parametrize(
    ("row", "k"),
    [
        (PLAIN, 1),
        (PLAIN, 3),
        (replace(PLAIN, temperature=0.7, top_k=4), 3),
        (replace(PLAIN, temperature=1.4, top_p=0.8), 2),
    ],
    ids=["plain-1", "plain-3", "top-k", "top-p"],
)
@pytest.mark.parametrize("proposer", PROPOSERS)
def test_the_target_distribution_is_unchanged_over_several_positions(
    proposer: str, row: SamplingRow, k: int
) -> None:
    target = table_model(0, scale=6) if proposer == "disjoint q" else TARGET
    counts = speculate(target, PROPOSERS[proposer], row, k, length=3)
    assert g_test(counts, expected_counts(target, row, length=3)) > 1e-3


def test_the_g_test_sees_a_wrong_temperature() -> None:
    counts = speculate(TARGET, table_model(1), replace(PLAIN, temperature=1.1), 3, length=3)
    assert g_test(counts, expected_counts(TARGET, PLAIN, length=3)) < 1e-3


def test_the_g_test_sees_a_replacement_drawn_from_p(monkeypatch: pytest.MonkeyPatch) -> None:
    """The classic fault: what replaces a refused token comes from p in place of p - q."""
    monkeypatch.setattr(Tensor, "clamp_", lambda self, min: torch.zeros_like(self))
    counts = speculate(TARGET, table_model(1), PLAIN, 3, length=3)
    assert g_test(counts, expected_counts(TARGET, PLAIN, length=3)) < 1e-3


def test_drawn_drafts_are_taken_as_often_as_is_possible() -> None:
    """With probability 1 - TV(p, q); guesses with p(guess)."""
    rows = [replace(PLAIN, seed=seed) for seed in range(NUM_TRIALS)]
    pairs = [one for row in rows for one in (row, replace(row, position=1))]
    p, q = (distribution(table_model(seed)([()]), [PLAIN])[0] for seed in (0, 1))
    token_ids, probs = draw_drafts(table_model(1)([()] * NUM_TRIALS), rows)
    drafts = [Draft((t,), row[None]) for t, row in zip(token_ids, probs, strict=True)]
    logits = TARGET([()]).expand(2 * NUM_TRIALS, -1)
    taken = sum(len(result) == 2 for result in verify(logits, pairs, drafts))
    expected = NUM_TRIALS * float(torch.minimum(p, q).sum())
    assert stats.binomtest(taken, NUM_TRIALS, expected / NUM_TRIALS).pvalue > 1e-3
    guesses = [Draft((2,))] * NUM_TRIALS
    taken = sum(len(result) == 2 for result in verify(logits, pairs, guesses))
    assert stats.binomtest(taken, NUM_TRIALS, float(p[2])).pvalue > 1e-3


def test_a_draft_equal_to_the_target_is_always_taken() -> None:
    rows = [replace(PLAIN, seed=seed, position=i) for seed in range(500) for i in range(2)]
    logits = TARGET([()]).expand(1000, -1)
    token_ids, probs = draw_drafts(logits[::2], rows[::2])
    drafts = [Draft((t,), row[None]) for t, row in zip(token_ids, probs, strict=True)]
    assert all(len(result) == 2 for result in verify(logits, rows, drafts))


@given(seed=st.integers(0, 2**64 - 1), data=st.data())
def test_guesses_change_no_token_whatever_they_are(seed: int, data: st.DataObject) -> None:
    """Greedy or not: the tokens are those of the sampler without drafts, as far as they go."""
    row = replace(PLAIN, seed=seed, temperature=data.draw(st.sampled_from([0.0, 0.8, 1.5])))
    plain: list[int] = []
    for position in range(6):
        plain += sample(TARGET([plain]), [replace(row, position=position)])
    guesses = [data.draw(st.sampled_from([token, (token + 1) % VOCAB_SIZE])) for token in plain[:5]]
    pasts = [guesses[:i] for i in range(6)]
    rows = [replace(row, position=i) for i in range(6)]
    [result] = verify(TARGET(pasts), rows, [Draft(tuple(guesses))])
    num_right = next((i for i in range(5) if guesses[i] != plain[i]), 5)
    assert list(result) == plain[: num_right + 1]


def test_greedy_takes_a_draft_while_it_is_the_most_likely_token() -> None:
    logits = torch.tensor([[0.0, 3, 1], [2, 0, 1], [0, 1, 5], [9, 0, 0]])
    rows = [replace(GREEDY, position=i) for i in range(4)]
    for guesses, expected in [
        ((1, 0, 2), (1, 0, 2, 0)),
        ((1, 0, 1), (1, 0, 2)),
        ((1, 2, 2), (1, 0)),
        ((0, 0, 2), (1,)),
    ]:
        probs = torch.eye(3)[list(guesses)]
        assert verify(logits, rows, [Draft(guesses)]) == [expected]
        assert verify(logits, rows, [Draft(guesses, probs)]) == [expected]


def test_a_given_number_of_tokens_is_taken_whatever_the_target_says() -> None:
    logits = torch.tensor([[0.0, 3, 1], [2, 0, 1], [0, 1, 5]])
    for row in (GREEDY, PLAIN):
        rows = [replace(row, position=i) for i in range(3)]
        for num_taken in range(3):
            draft = Draft((2, 2), torch.eye(3)[[2, 2]], num_taken)
            [result] = verify(logits, rows, [draft])
            assert result == (*(2, 2)[:num_taken], sample(logits, rows)[num_taken])
    assert Draft((4, 5, 6), num_taken=3).cut(1).num_taken == 1


def test_bans_hold_for_each_row_of_a_draft() -> None:
    logits = torch.tensor([[0.0, 3, 1]] * 2)
    rows = [replace(GREEDY, banned_token_ids=(1,)), replace(GREEDY, position=1)]
    assert verify(logits, rows, [Draft((1,))]) == [(2,)]
    assert verify(logits, rows, [Draft((2,))]) == [(2, 1)]


@given(
    st.lists(
        st.tuples(
            st.integers(0, 4),  # tokens of the draft
            st.sampled_from(["greedy", "guessed", "drawn"]),
            st.integers(0, 2**64 - 1),
        ),
        min_size=1,
        max_size=6,
    )
)
def test_a_request_is_verified_alike_alone_and_among_others(
    cases: list[tuple[int, str, int]],
) -> None:
    generator = torch.Generator().manual_seed(len(cases))
    parts = []
    for k, kind, seed in cases:
        row = replace(GREEDY if kind == "greedy" else PLAIN, seed=seed)
        rows = [replace(row, position=7 + i) for i in range(k + 1)]
        logits = torch.randn(k + 1, 40, generator=generator) * 2
        token_ids = torch.randint(40, (k,), generator=generator).tolist()
        probs = None
        if kind == "drawn" and k:
            token_ids, probs = draw_drafts(logits[:k] + 0.5, rows[:k])
            token_ids[-1:] = [0]
        parts.append((logits, rows, Draft(tuple(token_ids), probs)))
    alone = [verify(logits, rows, [draft])[0] for logits, rows, draft in parts]
    together = verify(
        torch.cat([logits for logits, _, _ in parts]),
        [row for _, rows, _ in parts for row in rows],
        [draft for _, _, draft in parts],
    )
    assert together == alone
    assert all(1 <= len(ids) <= k + 1 for ids, (k, _, _) in zip(together, cases, strict=True))


def test_a_cut_draft_keeps_its_first_tokens() -> None:
    draft = Draft((4, 5, 6), torch.eye(3))
    assert draft.cut(2).token_ids == (4, 5)
    assert torch.equal(draft.cut(2).probs, torch.eye(3)[:2])
    assert draft.cut(3) is draft
    assert len(Draft((1, 2)).cut(0)) == 0


def test_logits_and_probabilities_stay_as_they_were() -> None:
    logits, probs = TARGET([(), (0,)]), torch.full((1, VOCAB_SIZE), 1 / VOCAB_SIZE)
    before = logits.clone(), probs.clone()
    rows = [replace(PLAIN, position=i, banned_token_ids=(1,)) for i in range(2)]
    for seed in range(20):
        verify(logits, [replace(row, seed=seed) for row in rows], [Draft((0,), probs)])
    assert torch.equal(logits, before[0])
    assert torch.equal(probs, before[1])
    assert np.isclose(float(probs.sum()), 1)
