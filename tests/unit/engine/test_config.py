from typing import Any

import pytest

from llmopt.engine.config import EngineConfig
from llmopt.errors import UsageError


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"max_prefill_chunk": 0}, "max_prefill_chunk is 0"),
        ({"attention_window": 0}, "attention_window is 0"),
        ({"sink_tokens": -1}, "sink_tokens is -1"),
        ({"kv_dtype": "int2"}, "kv_dtype is 'int2'. Give one of auto, fp8, int8"),
        ({"policy": "lifo"}, "policy is 'lifo'. Give one of fcfs, priority, static"),
        ({"preemption": "kill"}, "preemption is 'kill'. Give one of recompute, swap"),
        ({"sink_tokens": 4}, "sink_tokens is 4 without an attention_window"),
        ({"policy": "static", "attention_window": 8}, "static policy keeps every token"),
    ],
)
def test_settings_that_make_no_sense_are_refused_by_name(
    settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(UsageError) as caught:
        EngineConfig(**settings)
    assert message in str(caught.value)


def test_a_chunk_is_no_larger_than_a_step() -> None:
    assert EngineConfig(max_num_batched_tokens=64).max_chunk == 64
    assert EngineConfig(max_num_batched_tokens=64, max_prefill_chunk=16).max_chunk == 16
    assert EngineConfig(max_num_batched_tokens=64, max_prefill_chunk=100).max_chunk == 64


def test_how_steps_are_scheduled_is_one_of_three() -> None:
    with pytest.raises(UsageError, match="async_scheduling is 'yes'"):
        EngineConfig(async_scheduling="yes")
