from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from llmopt.layers.penalties import Penalties, TokenCounts, penalize
from llmopt.layers.sampler import SamplingRow, distribution

VOCAB_SIZE = 40
CPU = torch.device("cpu")
PROMPT, OUTPUT = [3, 4, 4, 7], [7, 9, 9, 9, 3]
HOT = SamplingRow(temperature=0.8, top_k=None, top_p=1.0, seed=0, position=0)


def random_logits(rows: int, seed: int = 0) -> Tensor:
    return torch.randn(rows, VOCAB_SIZE, generator=torch.Generator().manual_seed(seed)) * 3


def counts_of(prompt: list[int], output: list[int]) -> tuple[TokenCounts, int]:
    counts = TokenCounts(VOCAB_SIZE, CPU)
    slot = counts.open(prompt)
    for token_id in output:
        counts.add([slot], [token_id])
    return counts, slot


def by_definition(logits: Tensor, row: Penalties, prompt: list[int], output: list[int]) -> Tensor:
    """One token at a time, as the papers and the API's documentation say it."""
    result = logits.double().clone()
    for token_id, bias in row.biases:
        result[token_id] += bias
    for token_id in set(prompt) | set(output):
        value = result[token_id]
        result[token_id] = value / row.repetition if value > 0 else value * row.repetition
    for token_id, count in Counter(output).items():
        result[token_id] -= row.frequency * count + row.presence
    return result.float()


rows_of_penalties = st.builds(
    Penalties,
    repetition=st.sampled_from([1.0, 1.3, 0.7]),
    frequency=st.sampled_from([0.0, 0.6, -0.4]),
    presence=st.sampled_from([0.0, 1.5, -2.0]),
    biases=st.lists(st.tuples(st.integers(0, VOCAB_SIZE - 1), st.floats(-5, 5)), max_size=3).map(
        tuple
    ),
)
tokens = st.lists(st.integers(0, VOCAB_SIZE - 1), max_size=12)


@settings(deadline=None)
@given(st.lists(st.tuples(rows_of_penalties, tokens, tokens, tokens), min_size=1, max_size=6))
def test_penalties_are_what_their_definitions_say(
    sequences: list[tuple[Penalties, list[int], list[int], list[int]]],
) -> None:
    logits = random_logits(len(sequences), seed=len(sequences))
    counts = TokenCounts(VOCAB_SIZE, CPU)
    rows, expected = [], []
    for index, (row, prompt, output, more) in enumerate(sequences):
        slot = counts.open([5, *prompt])
        counts.add([slot] * len(output), output)
        rows.append(replace(row, slot=slot, more_token_ids=tuple(more)))
        expected.append(by_definition(logits[index], row, [5, *prompt], output + more))
    before = logits.clone()
    torch.testing.assert_close(penalize(logits, rows, counts), torch.stack(expected))
    assert torch.equal(logits, before)


def test_rows_without_penalties_are_left_alone_and_free() -> None:
    logits = random_logits(2)
    counts, slot = counts_of(PROMPT, OUTPUT)
    assert penalize(logits, [Penalties(), Penalties()], counts) is logits
    changed = penalize(logits, [Penalties(), Penalties(slot=slot, presence=1.0)], counts)
    assert torch.equal(changed[0], logits[0])
    assert not torch.equal(changed[1], logits[1])


def test_a_slot_that_is_used_again_remembers_nothing() -> None:
    counts, slot = counts_of(PROMPT, OUTPUT)
    counts.close(slot)
    again = counts.open([1])
    assert again == slot
    assert counts.in_prompt[again].nonzero().flatten().tolist() == [1]
    assert counts.in_output[again].sum() == 0


def test_slots_grow_with_the_need_and_keep_what_they_hold() -> None:
    counts = TokenCounts(VOCAB_SIZE, CPU)
    slots = [counts.open([index]) for index in range(9)]
    assert len(set(slots)) == 9
    for index, slot in enumerate(slots):
        assert counts.in_prompt[slot].nonzero().flatten().tolist() == [index]
    assert counts.num_used_slots == 9
    counts.close(slots[0])
    assert counts.num_used_slots == 8


def test_masked_tokens_stay_impossible() -> None:
    logits = random_logits(1)
    logits[0, 9] = -torch.inf
    counts, slot = counts_of(PROMPT, OUTPUT)
    row = Penalties(slot=slot, repetition=0.5, frequency=-2.0, presence=-2.0)
    assert penalize(logits, [row], counts)[0, 9] == -torch.inf


def transformers_processors(kind: str) -> list[Any]:
    from transformers.generation import logits_process as hf

    made: dict[str, Callable[[], Any]] = {
        "bias": lambda: hf.SequenceBiasLogitsProcessor({(3,): 1.5, (20,): -2.0}),
        "repetition": lambda: hf.RepetitionPenaltyLogitsProcessor(1.4),
        "temperature": lambda: hf.TemperatureLogitsWarper(0.8),
        "top-k": lambda: hf.TopKLogitsWarper(12),
        "top-p": lambda: hf.TopPLogitsWarper(0.85),
        "min-p": lambda: hf.MinPLogitsWarper(0.1),
    }
    wanted = list(made) if kind == "all" else [kind]
    if "temperature" not in wanted:
        wanted.append("temperature")
        wanted.sort(key=list(made).index)
    return [made[name]() for name in wanted]


@pytest.mark.parametrize(
    "kind", ["bias", "repetition", "temperature", "top-k", "top-p", "min-p", "all"]
)
def test_each_step_and_all_together_are_those_of_transformers(kind: str) -> None:
    on = {name: kind in (name, "all") for name in ("bias", "repetition", "top-k", "top-p", "min-p")}
    logits = random_logits(200)
    expected = logits
    for processor in transformers_processors(kind):
        expected = processor(torch.tensor([PROMPT + OUTPUT] * 200), expected)
    counts, slot = counts_of(PROMPT, OUTPUT)
    row = Penalties(
        slot=slot,
        repetition=1.4 if on["repetition"] else 1.0,
        biases=((3, 1.5), (20, -2.0)) if on["bias"] else (),
    )
    sampling = replace(
        HOT,
        top_k=12 if on["top-k"] else None,
        top_p=0.85 if on["top-p"] else 1.0,
        min_p=0.1 if on["min-p"] else 0.0,
    )
    actual = distribution(penalize(logits, [row] * 200, counts), [sampling] * 200)
    torch.testing.assert_close(actual, torch.softmax(expected, -1).double(), rtol=1e-4, atol=1e-6)
    assert kind in ("bias", "repetition", "temperature") or (actual == 0).any()
