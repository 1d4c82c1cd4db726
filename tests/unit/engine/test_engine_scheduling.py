"""Policies, preemption by swapping, quantized caches and what they cost, on a tiny Llama."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from llmopt.engine.engine import Engine, EngineConfig
from llmopt.engine.request import StepOutput
from llmopt.engine.sampling_params import SamplingParams
from llmopt.errors import EngineError
from llmopt.models.decoder import Decoder

MakeEngine = Callable[..., Engine]
Run = Callable[..., dict[str, list[StepOutput]]]

GREEDY = SamplingParams(max_tokens=16, ignore_eos=True)


def tokens(outputs: dict[str, list[StepOutput]]) -> list[list[int]]:
    return [[token for out in outs for token in out.token_ids] for outs in outputs.values()]


@pytest.mark.parametrize(
    "config",
    [
        {"policy": "priority"},
        {"policy": "static", "max_num_seqs": 4},
        {"max_prefill_chunk": 5},
        {"policy": "static", "max_num_seqs": 3, "max_num_batched_tokens": 7},
    ],
)
def test_policies_change_nothing_in_the_output(
    make_engine: MakeEngine, run: Run, prompts: list[list[int]], config: dict[str, Any]
) -> None:
    assert tokens(run(make_engine(**config), prompts, GREEDY)) == tokens(
        run(make_engine(), prompts, GREEDY)
    )


@pytest.mark.parametrize("chunk", [5, 512])
@pytest.mark.parametrize("kv_dtype", ["auto", "int8"])
def test_swapping_changes_nothing_and_recomputes_nothing(
    make_engine: MakeEngine, run: Run, prompts: list[list[int]], chunk: int, kv_dtype: str
) -> None:
    roomy = make_engine(kv_dtype=kv_dtype, max_num_batched_tokens=chunk)
    expected = tokens(run(roomy, prompts, GREEDY))
    engine = make_engine(
        num_blocks=14,
        preemption="swap",
        prefix_caching=False,
        kv_dtype=kv_dtype,
        max_num_batched_tokens=chunk,
    )
    assert tokens(run(engine, prompts, GREEDY)) == expected
    stats = engine.stats
    assert stats.num_preemptions > 0
    assert stats.num_swapped_in_blocks == stats.num_swapped_out_blocks > 0
    assert stats.num_scheduled_tokens == sum(len(prompt) + 15 for prompt in prompts)


def test_without_host_memory_left_swapping_is_recomputation(
    make_engine: MakeEngine, run: Run, prompts: list[list[int]]
) -> None:
    expected = tokens(run(make_engine(), prompts, GREEDY))
    one_block = make_engine().plan.block_bytes
    engine = make_engine(num_blocks=14, preemption="swap", host_memory_bytes=one_block)
    assert tokens(run(engine, prompts, GREEDY)) == expected
    assert engine.stats.num_preemptions > 0
    assert engine.stats.num_swapped_out_blocks == 0


def test_host_memory_below_one_block_is_refused(make_engine: MakeEngine) -> None:
    with pytest.raises(EngineError, match="host_memory_bytes is 1"):
        make_engine(preemption="swap", host_memory_bytes=1)


def test_waste_is_counted_exactly_and_less_than_contiguous_rows_would(
    make_engine: MakeEngine,
) -> None:
    engine = make_engine(max_model_len=64)
    engine.add_request("a", [5, 6, 7, 8, 9], SamplingParams(max_tokens=3, ignore_eos=True))
    while engine.has_unfinished():
        engine.step()
    stats = engine.stats  # 2 layers; 5, 6 and 7 tokens in 2 blocks of 4
    assert stats.held_slot_steps == 2 * 3 * 8
    assert stats.empty_slot_steps == 2 * (3 + 2 + 1)
    assert stats.mean_waste_share == pytest.approx(6 / 24)
    assert stats.peak_waste_share == pytest.approx(3 / 8)
    assert stats.max_tokens_waste_share == pytest.approx(1 - 18 / (3 * 8))
    assert stats.model_len_waste_share == pytest.approx(1 - 18 / (3 * 64))


def test_static_batching_wastes_what_it_reserves(make_engine: MakeEngine) -> None:
    engine = make_engine(policy="static")
    engine.add_request("a", [5] * 5, SamplingParams(max_tokens=20, ignore_eos=True))
    engine.step()
    assert engine.stats.held_slot_steps == 2 * 24
    assert engine.stats.mean_waste_share == pytest.approx(19 / 24)


@pytest.mark.parametrize(("kv_dtype", "tolerance"), [("int8", 0.05), ("fp8", 0.3)])
def test_a_quantized_cache_bounds_the_error_of_the_logits(
    tiny_model: Decoder,
    prompts: list[list[int]],
    monkeypatch: pytest.MonkeyPatch,
    kv_dtype: Any,
    tolerance: float,
) -> None:
    seen: list[torch.Tensor] = []

    def compute_logits(hidden: torch.Tensor) -> torch.Tensor:
        seen.append(Decoder.compute_logits(tiny_model, hidden))
        return seen[-1]

    monkeypatch.setattr(tiny_model, "compute_logits", compute_logits)
    stats = []
    for dtype in ("auto", kv_dtype):
        engine = Engine(
            tiny_model,
            EngineConfig(block_size=4, num_blocks=64, kv_dtype=dtype, max_num_batched_tokens=8),
        )
        engine.add_request("a", prompts[5], SamplingParams(max_tokens=1))
        while engine.has_unfinished():
            engine.step()
        stats.append(engine.stats)
    exact, quantized = seen
    error = float((quantized - exact).norm() / exact.norm())
    assert 1e-4 < error < tolerance
    assert stats[0] == stats[1]


@pytest.mark.parametrize("kv_dtype", ["int8", "fp8"])
def test_a_quantized_cache_gives_the_same_tokens_in_any_batch(
    make_engine: MakeEngine, run: Run, prompts: list[list[int]], kv_dtype: str
) -> None:
    together = tokens(run(make_engine(kv_dtype=kv_dtype), prompts, GREEDY))
    engine = make_engine(kv_dtype=kv_dtype)
    assert [tokens(run(engine, [prompt], GREEDY))[0] for prompt in prompts] == together
    assert tokens(run(engine, prompts, GREEDY)) == together
    assert engine.stats.num_prefix_hit_tokens > 0
