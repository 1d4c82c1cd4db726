"""Decode steps at fixed addresses; what would record a CUDA graph keeps the function instead."""

from types import SimpleNamespace

import pytest
import torch
from hash_model import HashModel
from hypothesis import given
from hypothesis import strategies as st

from llmopt.engine.batch import build_batch
from llmopt.engine.decode_graphs import Compute, DecodeGraphs, decode_buckets, length_classes
from llmopt.engine.decode_inputs import DecodeInputs
from llmopt.engine.engine import Engine, EngineConfig
from llmopt.engine.kv_cache import PagedKV
from llmopt.engine.layer_group import LayerGroup
from llmopt.engine.request import Request
from llmopt.engine.sampling_params import SamplingParams
from llmopt.engine.scheduler import ScheduledRequest, SchedulerOutput
from llmopt_kernels.paged_attention import AttentionMetadata

CPU = torch.device("cpu")
PARAMS = SamplingParams(max_tokens=20, ignore_eos=True)


def test_buckets_and_classes() -> None:
    assert decode_buckets(1) == (1,)
    assert decode_buckets(2) == (1, 2)
    assert decode_buckets(3) == (1, 2, 4)
    assert decode_buckets(17) == (1, 2, 4, 8, 16, 24)
    assert decode_buckets(4096)[-3:] == (240, 248, 256)
    assert length_classes(256) == (256,)
    assert length_classes(1024) == (1024,)
    assert length_classes(9000) == (1024, 8192, 9000)


@given(st.integers(1, 300))
def test_the_largest_batch_fits_the_last_bucket_and_no_bucket_is_useless(limit: int) -> None:
    buckets = decode_buckets(limit)
    assert list(buckets) == sorted(set(buckets))
    assert buckets[-1] >= min(limit, 256)
    assert len(buckets) == 1 or buckets[-2] < limit


class Recorder:
    """Runs what is to be recorded, as a warm-up does, and keeps it."""

    def __init__(self) -> None:
        self.num_recorded = 0
        self.num_replays = 0

    def __call__(self, compute: Compute) -> Compute:
        self.num_recorded += 1
        compute()

        def replay() -> torch.Tensor:
            self.num_replays += 1
            return compute()

        return replay


def with_graphs(config: EngineConfig) -> tuple[Engine, Recorder]:
    """An engine of the hash model, with a cache that has a padding block, and recorded steps."""
    model = HashModel()
    engine = Engine(model, config)
    plan = engine.plan
    engine.kv = PagedKV(plan.groups, [n + 1 for n in plan.num_blocks], plan.layout, CPU)
    engine.runner.kv_cache = engine.kv.layers
    recorder = Recorder()
    engine.runner.graphs = DecodeGraphs(
        model,
        engine.kv.layers,
        plan.groups,
        padding_blocks=plan.num_blocks,
        block_size=config.block_size,
        max_num_seqs=config.max_num_seqs,
        max_model_len=plan.max_model_len,
        capture=recorder,
    )
    return engine, recorder


def generate(engine: Engine, prompts: list[list[int]], params: SamplingParams) -> list[list[int]]:
    tokens: list[list[int]] = [[] for _ in prompts]
    for index, prompt in enumerate(prompts):
        engine.add_request(str(index), prompt, params)
    while engine.has_unfinished():
        for out in engine.step():
            tokens[int(out.request_id)] += out.token_ids
    return tokens


@pytest.mark.parametrize("ahead", ["off", "on"])
@pytest.mark.parametrize("limits", [{}, {"attention_window": 5, "sink_tokens": 1}], ids=str)
def test_tokens_are_those_without_graphs(limits: dict[str, int], ahead: str) -> None:
    prompts = [[3, 4, 5], [6], list(range(2, 20)), [7, 8], [9]]
    config = EngineConfig(
        block_size=4, num_blocks=60, max_num_seqs=5, async_scheduling=ahead, **limits
    )
    engine, recorder = with_graphs(config)
    expected = generate(Engine(HashModel(), config), prompts, PARAMS)
    assert generate(engine, prompts, PARAMS) == expected
    assert recorder.num_recorded == 1, "five decodes are one bucket of eight"
    assert recorder.num_replays == 19, "all steps but that of the prompts"


def test_a_replay_leaves_the_tables_of_longer_requests_alone() -> None:
    """Rows and columns that a step does not fill keep what was there: nothing may read it."""
    config = EngineConfig(block_size=2, num_blocks=60, max_num_seqs=4)
    engine, _ = with_graphs(config)
    for prompts in ([list(range(2, 22)), [3, 4, 5], [3], [4]], [[5]]):
        expected = generate(Engine(HashModel(), config), prompts, PARAMS)
        assert generate(engine, prompts, PARAMS) == expected


def test_all_graphs_are_recorded_at_once_and_write_to_the_padding_block_only() -> None:
    engine, recorder = with_graphs(
        EngineConfig(block_size=4, num_blocks=8, max_num_seqs=9, max_model_len=1500)
    )
    graphs = engine.runner.graphs
    assert graphs is not None
    for keys, values in engine.kv.layers:
        keys.fill_(5)
        values.fill_(5)
    graphs.capture_all()
    assert recorder.num_recorded == 5 * 2  # buckets 1, 2, 4, 8, 16 of 1024 and of 1500
    assert all((cache[:-1] == 5).all() for layer in engine.kv.layers for cache in layer)
    assert (engine.kv.layers[0][0][-1, 0] != 5).any()
    generate(engine, [[2, 3]], SamplingParams(max_tokens=3, ignore_eos=True))
    assert recorder.num_recorded == 10


def decode_of(tokens: list[int], table: list[int], num_scheduled: int = 1) -> ScheduledRequest:
    request = Request("r", tokens, len(tokens), SamplingParams(), 128, seed=0)
    request.block_tables = (list(table), list(reversed(table)))
    start = len(tokens) - num_scheduled
    return ScheduledRequest(request, start, num_scheduled, samples=True)


def test_which_steps_are_taken() -> None:
    engine, _ = with_graphs(EngineConfig(block_size=4, num_blocks=8, max_num_seqs=2))
    graphs = engine.runner.graphs
    assert graphs is not None

    def takes(*items: ScheduledRequest) -> bool:
        return graphs.takes(SchedulerOutput(tuple(items)))

    decode = decode_of([3, 4, 5], [0])
    assert takes(decode)
    assert takes(decode, decode)
    assert not takes()
    assert not takes(decode, decode, decode), "more than the largest bucket"
    assert not takes(decode, decode_of([3, 4, 5], [1], num_scheduled=2)), "a chunk of a prompt"
    assert not takes(ScheduledRequest(decode.request, 0, 1, samples=False)), "its first token"
    draft = ScheduledRequest(decode.request, 2, 3, samples=True, draft_token_ids=(4, 5))
    assert not takes(draft)


@pytest.mark.parametrize(("num_tokens", "bound"), [(3, 1024), (1024, 1024), (1025, 1030)])
def test_a_step_takes_the_class_of_its_longest_request(num_tokens: int, bound: int) -> None:
    seen: list[AttentionMetadata] = []
    model = SimpleNamespace(
        device=CPU,
        forward=lambda ids, positions, metadata, cache: seen.append(metadata) or ids,
        compute_sampling_logits=lambda hidden: hidden,
    )
    graphs = DecodeGraphs(
        model,
        (),
        [LayerGroup((0,))],
        padding_blocks=[600],
        block_size=2,
        max_num_seqs=3,
        max_model_len=1030,
        capture=lambda compute: compute,
    )
    items = (decode_of([5] * num_tokens, list(range(515))), decode_of([7, 8], [9]))
    logits = graphs.replay(SchedulerOutput(items), None)
    assert logits.tolist() == [5, 8]
    assert seen[0].seq_lens == (bound, bound)
    assert seen[0].query_lens == (1, 1)


@given(st.lists(st.tuples(st.integers(1, 30), st.integers(0, 99)), min_size=1, max_size=8))
def test_the_inputs_are_those_of_a_batch(shapes: list[tuple[int, int]]) -> None:
    size, groups = 3, [LayerGroup((0,)), LayerGroup((1,), window=4, num_sinks=2)]
    items = [
        decode_of(list(range(seed, seed + n)), [(seed + i) % 90 for i in range(-(-n // size))])
        for n, seed in shapes
    ]
    output = SchedulerOutput(tuple(items))
    inputs = DecodeInputs(
        groups, [90, 91], block_size=size, max_rows=8, max_model_len=30, device=CPU
    )
    filler = [decode_of(list(range(30)), list(range(10)))] * 8
    inputs.load(SchedulerOutput(tuple(filler)), None)  # what was there before does not matter
    inputs.load(output, None)
    batch, count = build_batch(output, size, CPU, groups), len(items)
    assert inputs.input_ids(count).equal(batch.input_ids)
    assert inputs.positions(count).equal(batch.positions)
    found = inputs.metadata(8, max_seq_len=30)
    for layer in (0, 1):
        ours, theirs = found.of_layer(layer), batch.metadata.of_layer(layer)
        assert theirs.slot_mapping is not None
        assert theirs.block_tables is not None
        assert ours.slot_mapping.equal(  # type: ignore[union-attr]
            torch.cat([theirs.slot_mapping, torch.full((8 - count,), (90 + layer) * size)])
        )
        width = theirs.block_tables.shape[1]
        assert ours.block_tables[:count, :width].equal(theirs.block_tables)  # type: ignore[index]
        lengths = ours.device_lengths(CPU)
        assert lengths.seq_lens.tolist() == [*theirs.seq_lens, *[0] * (8 - count)]
        assert lengths.cu_seqlens_q.tolist() == list(range(9))
        assert (ours.max_window, ours.num_sinks) == (theirs.max_window, theirs.num_sinks)
