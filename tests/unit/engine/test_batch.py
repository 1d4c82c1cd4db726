from typing import Any

import torch
from hypothesis import given
from hypothesis import strategies as st

from llmopt.engine.batch import build_batch
from llmopt.engine.request import Request, SamplingParams
from llmopt.engine.scheduler import ScheduledRequest, SchedulerOutput

CPU = torch.device("cpu")


def scheduled(
    tokens: list[int], block_table: list[int], start: int, num_tokens: int
) -> ScheduledRequest:
    request = Request("r", tokens, len(tokens), SamplingParams(), 128, seed=0)
    request.block_table = block_table
    return ScheduledRequest(request, start, num_tokens, samples=start + num_tokens == len(tokens))


def test_a_chunk_a_decode_and_a_whole_prompt_in_one_batch() -> None:
    chunk = scheduled([10, 11, 12, 13, 14, 15], [7, 3], start=1, num_tokens=3)
    decode = scheduled([20, 21, 22, 23, 24], [5, 0], start=4, num_tokens=1)
    prompt = scheduled([30, 31], [2], start=0, num_tokens=2)
    batch = build_batch(SchedulerOutput((chunk, decode, prompt)), block_size=4, device=CPU)
    assert batch.input_ids.tolist() == [11, 12, 13, 24, 30, 31]
    assert batch.positions.tolist() == [1, 2, 3, 4, 0, 1]
    assert batch.metadata.query_lens == (3, 1, 2)
    assert batch.metadata.seq_lens == (4, 5, 2)
    assert batch.metadata.slot_mapping is not None
    assert batch.metadata.slot_mapping.tolist() == [29, 30, 31, 0, 8, 9]
    assert batch.metadata.block_tables is not None
    assert batch.metadata.block_tables.tolist() == [[7, 3], [5, 0], [2, 0]]
    assert batch.metadata.block_tables.dtype == torch.int32
    assert batch.logits_indices.tolist() == [3, 5]
    assert batch.sampling_requests == (decode.request, prompt.request)


def test_a_batch_in_which_nothing_samples() -> None:
    batch = build_batch(
        SchedulerOutput((scheduled([1, 2, 3], [0], 0, 2),)), block_size=4, device=CPU
    )
    assert batch.logits_indices.shape == (0,)
    assert batch.sampling_requests == ()


@st.composite
def steps(draw: st.DrawFn) -> tuple[list[ScheduledRequest], int]:
    block_size = draw(st.integers(1, 5))
    items = []
    for _ in range(draw(st.integers(1, 4))):
        tokens = draw(st.lists(st.integers(0, 99), min_size=1, max_size=20))
        start = draw(st.integers(0, len(tokens) - 1))
        num_tokens = draw(st.integers(1, len(tokens) - start))
        num_blocks = -(-(start + num_tokens) // block_size)
        table = draw(st.lists(st.integers(0, 50), min_size=num_blocks, max_size=num_blocks))
        items.append(scheduled(tokens, table, start, num_tokens))
    return items, block_size


@given(steps())
def test_each_row_is_the_token_position_and_slot_of_its_request(step: Any) -> None:
    items, block_size = step
    rows = [
        (
            item.request.token_ids[position],
            position,
            item.request.block_table[position // block_size] * block_size + position % block_size,
        )
        for item in items
        for position in range(item.start, item.start + item.num_scheduled_tokens)
    ]
    batch = build_batch(SchedulerOutput(tuple(items)), block_size, CPU)
    slots = batch.metadata.slot_mapping
    assert slots is not None
    assert (
        list(zip(batch.input_ids.tolist(), batch.positions.tolist(), slots.tolist(), strict=True))
        == rows
    )
    assert {t.dtype for t in (batch.input_ids, batch.positions, slots, batch.logits_indices)} == {
        torch.int64
    }
