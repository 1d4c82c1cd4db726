"""Steps by size in the built-in backend's counters."""

import asyncio

import pytest

from llmopt.backends.builtin import BuiltinBackend
from llmopt.backends.protocol import GenerationParams
from llmopt.engine.engine import EngineConfig
from llmopt.models.loader import load_model
from llmopt.results.attribution import step_groups


def test_counters_tell_the_steps_of_a_size_apart(tiny_llama):
    model = load_model(tiny_llama, dtype="float32")
    config = EngineConfig(
        num_blocks=16, max_model_len=64, kv_dtype="int8", max_num_batched_tokens=12
    )
    backend = BuiltinBackend(model, config)
    backend.start()

    async def consume() -> None:
        async for _ in backend.stream(list(range(3, 23)), GenerationParams(max_tokens=6)):
            pass

    backend.drive(lambda: asyncio.run(consume()))
    stats = backend.stats()
    backend.stop()
    decode, last, first = step_groups(stats)
    shape = model.config
    slot_bytes = 2 * shape.num_layers * shape.num_kv_heads * (shape.head_dim + 2)  # with a scale
    assert (first.num_steps, first.num_tokens, first.num_rows) == (1, 12, 0)
    assert (last.num_steps, last.num_tokens, last.num_rows) == (1, 8, 1)
    assert (first.kv_bytes, last.kv_bytes) == (12 * slot_bytes, 20 * slot_bytes)
    assert (first.lm_head_bytes, last.lm_head_bytes) == (0, model.lm_head.weight_bytes)
    assert (decode.num_steps, decode.num_tokens, decode.num_requests) == (5, 5, 5)
    assert decode.kv_bytes == sum(range(21, 26)) * slot_bytes
    assert decode.lm_head_bytes == 5 * model.lm_head.weight_bytes
    assert decode.num_attended == sum(range(21, 26))
    assert sum(g.forward_s for g in (decode, last, first)) == pytest.approx(stats["forward_s"])
