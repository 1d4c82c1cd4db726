import asyncio
import threading
from collections.abc import Coroutine
from contextlib import aclosing
from dataclasses import replace
from typing import Any

import pytest

from llmopt.backends.builtin import BuiltinBackend
from llmopt.backends.protocol import GenerationParams, T, TokenEvent
from llmopt.engine.engine import Engine, EngineConfig
from llmopt.engine.sampling_params import SamplingParams
from llmopt.engine.speculation.config import SpeculationConfig
from llmopt.errors import EngineError, UsageError
from llmopt.models.loader import load_model

PROMPTS = [list(range(3, 3 + n)) for n in (5, 17, 9)]
CONFIG = EngineConfig(num_blocks=16, max_num_seqs=4, max_model_len=64)


@pytest.fixture
def model(tiny_llama):
    return load_model(tiny_llama, dtype="float32")


@pytest.fixture
def backend(model):
    backend = BuiltinBackend(model, CONFIG)
    backend.start()
    yield backend
    backend.stop()


async def collect(backend: Any, prompt: Any, **params: Any) -> list[TokenEvent]:
    return [event async for event in backend.stream(prompt, GenerationParams(**params))]


def drive(backend: BuiltinBackend, client: Coroutine[Any, Any, T]) -> T:
    return backend.drive(lambda: asyncio.run(client))


def test_streams_give_every_token_once(backend):
    async def main() -> list[list[TokenEvent]]:
        return await asyncio.gather(*[collect(backend, p, max_tokens=12) for p in PROMPTS])

    for events in drive(backend, main()):
        assert sum(event.num_tokens for event in events) == 12
        assert [event.finish_reason for event in events] == [None] * 11 + ["length"]
        assert {event.num_preemptions for event in events} == {0}


def test_end_of_sequence_is_ignored_only_if_asked(make_tiny_llama, tiny_llama):
    engine = Engine(load_model(tiny_llama, dtype="float32"), CONFIG)
    engine.add_request("0", PROMPTS[0], SamplingParams(max_tokens=4, ignore_eos=True))
    greedy = [token for _ in range(4) for out in engine.step() for token in out.token_ids]
    stopping = load_model(make_tiny_llama(eos_token_id=greedy[2]), dtype="float32")
    backend = BuiltinBackend(stopping, CONFIG)
    backend.start()

    async def lengths() -> list[int]:
        asked = [collect(backend, PROMPTS[0], max_tokens=9, ignore_eos=i) for i in (True, False)]
        return [sum(event.num_tokens for event in events) for events in [await a for a in asked]]

    try:
        assert drive(backend, lengths()) == [9, greedy.index(greedy[2]) + 1]
    finally:
        backend.stop()


def test_stats_count_steps(backend):
    drive(backend, collect(backend, PROMPTS[0], max_tokens=6))
    stats = backend.stats()
    assert stats["num_steps"] == 6  # one for the prompt, which samples, and five more
    assert stats["num_scheduled_tokens"] == 5 + 5
    assert stats["peak_used_blocks"] == 1


def test_starting_again_begins_anew(backend):
    drive(backend, collect(backend, PROMPTS[0], max_tokens=6))
    backend.stop()
    backend.stop()  # does nothing
    backend.start()
    assert backend.stats()["num_steps"] == 0
    assert len(drive(backend, collect(backend, PROMPTS[0], max_tokens=2))) == 2


def test_a_request_that_can_never_be_served_raises(backend):
    with pytest.raises(EngineError, match="64"):
        drive(backend, collect(backend, list(range(3, 103)), max_tokens=4))
    assert len(drive(backend, collect(backend, PROMPTS[0], max_tokens=2))) == 2


def test_limits_beyond_the_model_are_refused_at_start(model):
    with pytest.raises(UsageError, match="max_model_len"):
        BuiltinBackend(model, EngineConfig(max_model_len=100_000)).start()


@pytest.mark.parametrize("how", ["cancelled", "closed"])
def test_a_stream_that_is_dropped_frees_its_cache(backend, how):
    async def drop() -> None:
        async with aclosing(backend.stream(PROMPTS[1], GenerationParams(max_tokens=40))) as events:
            async for _ in events:
                break
            if how == "cancelled":
                task = asyncio.ensure_future(collect(backend, PROMPTS[0], max_tokens=50))
                await asyncio.sleep(0.01)
                task.cancel()
                await asyncio.gather(task, return_exceptions=True)
        await collect(backend, PROMPTS[2], max_tokens=2)  # the aborts come before it

    drive(backend, drop())
    assert backend._engine.block_pool.num_used_blocks == 0


def test_what_it_says_of_itself(backend):
    assert backend.name == "llmopt"
    assert backend.version.count(".") == 2
    assert backend.settings["max_num_seqs"] == 4


def test_the_engine_computes_in_the_thread_that_drives(backend, monkeypatch):
    threads = set()
    step = Engine.step

    def watched(engine):
        threads.add(threading.current_thread())
        return step(engine)

    monkeypatch.setattr(Engine, "step", watched)
    drive(backend, collect(backend, PROMPTS[0], max_tokens=3))
    assert threads == {threading.main_thread()}


def test_an_interruption_ends_the_client_and_is_raised(backend, monkeypatch):
    def interrupted(engine):
        raise KeyboardInterrupt

    monkeypatch.setattr(Engine, "step", interrupted)
    with pytest.raises(KeyboardInterrupt):
        drive(backend, collect(backend, PROMPTS[0], max_tokens=3))
    assert "llmopt-client" not in " ".join(thread.name for thread in threading.enumerate())
    assert backend._engine.block_pool.num_used_blocks == 0


def test_the_clients_own_error_is_raised(backend):
    async def broken() -> None:
        raise ValueError("the client is broken")

    with pytest.raises(ValueError, match="client is broken"):
        drive(backend, broken())


def test_a_hit_in_the_prefix_cache_is_said_with_the_tokens(backend):
    first = drive(backend, collect(backend, list(range(3, 43)), max_tokens=2))
    again = drive(backend, collect(backend, list(range(3, 43)), max_tokens=2))
    assert [event.num_cached_tokens for event in first] == [0, 0]
    assert [event.num_cached_tokens for event in again] == [32, 32]


def test_the_peak_of_the_cache_is_that_of_held_blocks(backend):
    drive(backend, collect(backend, PROMPTS[1], max_tokens=16))  # 32 slots: the last has no token
    block_bytes = 2 * 2 * 16 * 16 * 4 * 2  # K and V, heads, head size, tokens, float32, layers
    stats = backend.stats()
    assert stats["peak_used_blocks"] == 2
    assert stats["peak_kv_bytes"] == 2 * block_bytes
    assert stats["forward_s"] > 0


def test_speculation_is_counted_by_position(model):
    settings = SpeculationConfig("ngram", 3, adaptive=False, synthetic_acceptance=1.0)
    backend = BuiltinBackend(model, replace(CONFIG, speculation=settings))
    backend.start()
    drive(backend, collect(backend, PROMPTS[0], max_tokens=9))
    stats = backend.stats()
    backend.stop()
    assert (stats["num_decodes"], stats["num_decode_tokens"], stats["num_drafts"]) == (2, 8, 2)
    for position in (1, 2, 3):
        assert stats[f"num_drafted_at_{position}"] == stats[f"num_accepted_at_{position}"] == 2
