"""Sliding windows: blocks that left the window are freed, and the tokens stay those of a mask."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from llmopt.engine.engine import Engine, EngineConfig
from llmopt.engine.request import StepOutput
from llmopt.engine.sampling_params import SamplingParams
from llmopt.models.decoder import Decoder
from llmopt.models.loader import load_model

Run = Callable[..., dict[str, list[StepOutput]]]

GREEDY = SamplingParams(max_tokens=24, ignore_eos=True)
WINDOW = 6


def tokens(outputs: dict[str, list[StepOutput]]) -> list[list[int]]:
    return [[token for out in outs for token in out.token_ids] for outs in outputs.values()]


def save_model(path: Path, kind: str) -> None:
    """Gemma 3: windows in every layer but the third. Qwen2: in every layer."""
    from transformers import (
        Gemma3ForCausalLM,
        Gemma3TextConfig,
        Qwen2Config,
        Qwen2ForCausalLM,
    )

    torch.manual_seed(0)
    sizes = {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "vocab_size": 128,
        "max_position_embeddings": 256,
        "initializer_range": 0.4,
        "sliding_window": WINDOW,
        "bos_token_id": 0,
        "eos_token_id": 1,
        "tie_word_embeddings": False,
    }
    if kind == "mixed":
        layer_types = ["sliding_attention", "sliding_attention", "full_attention"]
        config = Gemma3TextConfig(**sizes, head_dim=8, layer_types=layer_types)
        Gemma3ForCausalLM(config).save_pretrained(path)
    else:
        config = Qwen2Config(**sizes, use_sliding_window=True, max_window_layers=0)
        Qwen2ForCausalLM(config).save_pretrained(path)


@pytest.fixture(scope="module", params=["mixed", "sliding"])
def windowed(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, prompts: Any
) -> tuple[Decoder, list[list[int]]]:
    """The model, and the greedy tokens of transformers for each prompt."""
    from transformers import AutoModelForCausalLM

    path = tmp_path_factory.mktemp(request.param)
    save_model(path, request.param)
    oracle = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval()
    generated = []
    for prompt in prompts:
        ids = list(prompt)
        for _ in range(24):
            with torch.inference_mode():
                logits = oracle(torch.tensor([ids]), use_cache=False).logits
            ids.append(int(logits[0, -1].argmax()))
        generated.append(ids[len(prompt) :])
    assert len({tuple(ids) for ids in generated}) == len(prompts)
    return load_model(path, dtype="float32"), generated


@pytest.mark.parametrize(
    "config",
    [
        {},
        {"max_num_batched_tokens": 1},
        {"max_num_batched_tokens": 7},
        {"block_size": 1},
        {"block_size": 16},
        {"policy": "static"},
        {"prefix_caching": False},
    ],
)
def test_greedy_equals_transformers_while_blocks_are_freed(
    windowed: tuple[Decoder, list[list[int]]],
    run: Run,
    prompts: list[list[int]],
    config: dict[str, Any],
) -> None:
    model, expected = windowed
    engine = Engine(model, EngineConfig(**{"block_size": 4, "num_blocks": 256, **config}))
    assert tokens(run(engine, prompts, GREEDY)) == expected
    assert engine.scheduler.blocks.num_used_blocks == 0
    freed = engine.stats.num_freed_window_blocks
    assert (freed == 0) == (config.get("policy") == "static")


@pytest.mark.parametrize("preemption", ["recompute", "swap"])
def test_preemption_changes_nothing(
    windowed: tuple[Decoder, list[list[int]]],
    run: Run,
    prompts: list[list[int]],
    preemption: Any,
) -> None:
    model, expected = windowed
    mixed = model.config.layers[-1].window is None
    config = EngineConfig(
        block_size=4,
        num_blocks=15 if mixed else 7,
        max_num_batched_tokens=16 if mixed else 4,
        preemption=preemption,
    )
    engine = Engine(model, config)
    assert tokens(run(engine, prompts, GREEDY)) == expected
    stats = engine.stats
    assert stats.num_preemptions > 0
    assert stats.num_freed_window_blocks > 0
    assert (stats.num_swapped_in_blocks > 0) == (preemption == "swap")


@pytest.mark.parametrize("chunk", [5, 64])
def test_cold_and_warm_runs_are_equal(
    windowed: tuple[Decoder, list[list[int]]], run: Run, prompts: list[list[int]], chunk: int
) -> None:
    """A hit needs the window's last blocks only: the first ones may be gone."""
    model, expected = windowed
    config = EngineConfig(block_size=4, num_blocks=64, max_num_batched_tokens=chunk)
    engine = Engine(model, config)
    assert tokens(run(engine, prompts, GREEDY)) == expected
    assert engine.stats.num_prefix_hit_tokens == 0
    warm = run(engine, prompts, GREEDY)
    assert tokens(warm) == expected
    assert [outs[0].num_prefix_hit_tokens for outs in warm.values()] == [0, 4, 7, 8, 16, 32]
    table = engine.scheduler.blocks.groups[-1]
    assert table.pool.num_idle_blocks > 0


def test_forks_share_what_the_window_shows(
    windowed: tuple[Decoder, list[list[int]]], prompts: list[list[int]]
) -> None:
    model, expected = windowed
    config = EngineConfig(block_size=4, num_blocks=64, prefix_caching=False)
    engine = Engine(model, config)
    ids = engine.add_request("a", prompts[5], replace(GREEDY, n=3))
    outputs: dict[str, list[int]] = {request_id: [] for request_id in ids}
    while engine.has_unfinished():
        for out in engine.step():
            outputs[out.request_id] += out.token_ids
        engine.scheduler.check_invariants()
    assert list(outputs.values()) == [expected[5]] * 3
    assert engine.stats.num_forks == 2


def test_memory_is_flat_beyond_the_window(
    windowed: tuple[Decoder, list[list[int]]], prompts: list[list[int]]
) -> None:
    model, _ = windowed
    engine = Engine(model, EngineConfig(block_size=4, num_blocks=64, max_num_batched_tokens=8))
    engine.add_request("a", prompts[1], SamplingParams(max_tokens=200, ignore_eos=True))
    group = engine.scheduler.blocks.groups[-1]
    assert group.layers.window == WINDOW
    used = []
    while engine.has_unfinished():
        engine.step()
        used.append(group.pool.num_used_blocks)
    assert max(used) <= 3  # 6 positions and the next one, wherever they begin
    assert min(used[10:-1]) >= 2
    assert engine.stats.num_freed_window_blocks > 200 // 4 - 3


@pytest.fixture(scope="module")
def capped(tiny_checkpoint: Path, prompts: list[list[int]]) -> list[list[int]]:
    from transformers import LlamaForCausalLM

    oracle = LlamaForCausalLM.from_pretrained(tiny_checkpoint, dtype=torch.float32).eval()
    generated = []
    for prompt in prompts:
        ids = list(prompt)
        for _ in range(24):
            n = len(ids)
            distance = torch.arange(n)[:, None] - torch.arange(n)
            visible = (distance >= 0) & ((distance < 8) | (torch.arange(n) < 3))
            mask = torch.zeros(n, n).masked_fill_(~visible, torch.finfo(torch.float32).min)
            with torch.inference_mode():
                logits = oracle(
                    torch.tensor([ids]), attention_mask=mask[None, None], use_cache=False
                ).logits
            ids.append(int(logits[0, -1].argmax()))
        generated.append(ids[len(prompt) :])
    return generated


class TestSinks:
    """A Llama whose cache is capped at 3 sinks and a window of 8, against a mask."""

    @pytest.mark.parametrize(
        "config",
        [
            {},
            {"max_num_batched_tokens": 3},
            {"block_size": 1},
            {"block_size": 16},
            {"num_blocks": 9, "max_num_batched_tokens": 4},
        ],
    )
    def test_greedy_equals_a_masked_model(
        self,
        tiny_model: Decoder,
        run: Run,
        prompts: list[list[int]],
        capped: list[list[int]],
        config: dict[str, Any],
    ) -> None:
        given = {"block_size": 4, "num_blocks": 128, "attention_window": 8, "sink_tokens": 3}
        engine = Engine(tiny_model, EngineConfig(**{**given, **config}))
        for _ in range(2):
            assert tokens(run(engine, prompts, GREEDY)) == capped
        assert engine.stats.num_freed_window_blocks > 0
        tight = "num_blocks" in config
        assert (engine.stats.num_preemptions > 0) == tight
        assert tight or engine.stats.num_prefix_hit_tokens > 0

    def test_the_cap_changes_what_the_model_computes_and_a_wide_one_does_not(
        self,
        tiny_model: Decoder,
        run: Run,
        prompts: list[list[int]],
        capped: list[list[int]],
    ) -> None:
        free = tokens(run(Engine(tiny_model, EngineConfig(num_blocks=64)), prompts, GREEDY))
        wide = Engine(tiny_model, EngineConfig(num_blocks=64, attention_window=200, sink_tokens=3))
        assert free != capped
        assert tokens(run(wide, prompts, GREEDY)) == free
