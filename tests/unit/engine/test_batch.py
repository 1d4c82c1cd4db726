from typing import Any

import torch
from hypothesis import given
from hypothesis import strategies as st

from llmopt.engine.batch import build_batch
from llmopt.engine.layer_group import LayerGroup
from llmopt.engine.request import Request
from llmopt.engine.sampling_params import SamplingParams
from llmopt.engine.scheduler import ScheduledRequest, SchedulerOutput

CPU = torch.device("cpu")
FULL = [LayerGroup((0, 1))]


def scheduled(
    tokens: list[int], block_table: list[int | None], start: int, num_tokens: int
) -> ScheduledRequest:
    request = Request("r", tokens, len(tokens), SamplingParams(), 128, seed=0)
    request.block_tables = (block_table,)
    return ScheduledRequest(request, start, num_tokens, samples=start + num_tokens == len(tokens))


def test_a_chunk_a_decode_and_a_whole_prompt_in_one_batch() -> None:
    chunk = scheduled([10, 11, 12, 13, 14, 15], [7, 3], start=1, num_tokens=3)
    decode = scheduled([20, 21, 22, 23, 24], [5, 0], start=4, num_tokens=1)
    prompt = scheduled([30, 31], [2], start=0, num_tokens=2)
    batch = build_batch(
        SchedulerOutput((chunk, decode, prompt)), block_size=4, device=CPU, groups=FULL
    )
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
    assert batch.sampling == (decode, prompt)


def test_a_batch_in_which_nothing_samples() -> None:
    output = SchedulerOutput((scheduled([1, 2, 3], [0], 0, 2),))
    batch = build_batch(output, block_size=4, device=CPU, groups=FULL)
    assert batch.logits_indices.shape == (0,)
    assert batch.sampling == ()


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
            item.request.block_tables[0][position // block_size] * block_size
            + position % block_size,
        )
        for item in items
        for position in range(item.start, item.start + item.num_scheduled_tokens)
    ]
    batch = build_batch(SchedulerOutput(tuple(items)), block_size, CPU, FULL)
    slots = batch.metadata.slot_mapping
    assert slots is not None
    assert (
        list(zip(batch.input_ids.tolist(), batch.positions.tolist(), slots.tolist(), strict=True))
        == rows
    )
    assert {t.dtype for t in (batch.input_ids, batch.positions, slots, batch.logits_indices)} == {
        torch.int64
    }


def test_each_layer_group_has_slots_and_tables_of_its_own() -> None:
    item = scheduled([1, 2, 3, 4, 5, 6, 7, 8, 9], [3, 4, 5], start=8, num_tokens=1)
    item.request.block_tables = ([3, 4, 5], [6, None, 2])
    groups = [LayerGroup((0, 2)), LayerGroup((1,), window=1, num_sinks=2)]
    metadata = build_batch(SchedulerOutput((item,)), 4, CPU, groups).metadata
    full, windowed = metadata.of_layer(0), metadata.of_layer(1)
    assert metadata.of_layer(2) is full
    for seen, slot, table in [(full, 20, [3, 4, 5]), (windowed, 8, [6, 0, 2])]:
        assert seen.slot_mapping is not None
        assert seen.block_tables is not None
        assert (seen.slot_mapping.tolist(), seen.block_tables.tolist()) == ([slot], [table])
    assert (full.max_window, full.num_sinks) == (None, 0)
    assert (windowed.max_window, windowed.num_sinks) == (1, 2)
