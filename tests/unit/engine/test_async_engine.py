import asyncio
import threading
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from dataclasses import replace
from typing import Any

import pytest

from llmopt.engine.async_engine import AsyncEngine
from llmopt.engine.engine import Engine
from llmopt.engine.request import StepOutput
from llmopt.engine.sampling_params import SamplingParams
from llmopt.errors import EngineError, UsageError

MakeEngine = Callable[..., Engine]
Run = Callable[..., dict[str, list[StepOutput]]]

PARAMS = SamplingParams(max_tokens=16, ignore_eos=True)
LONG = replace(PARAMS, max_tokens=200)


def serve(engine: Engine, consume: Callable[[AsyncEngine], Coroutine[Any, Any, Any]]) -> Any:
    """Run `consume` with an AsyncEngine; nothing may be left queued or allocated afterwards."""

    async def main() -> Any:
        async with AsyncEngine(engine) as async_engine:
            result = await consume(async_engine)
            await settle(lambda: not engine.has_unfinished())
            assert engine.block_pool.num_used_blocks == 0
            return result

    return asyncio.run(asyncio.wait_for(main(), timeout=30))


async def settle(condition: Callable[[], bool]) -> None:
    """Wait for the background thread."""
    while not condition():
        await asyncio.sleep(0.001)


async def collect(stream: AsyncIterator[StepOutput]) -> list[int]:
    return [token_id async for out in stream for token_id in out.token_ids]


def tokens(outputs: dict[str, list[StepOutput]]) -> list[list[int]]:
    return [[token for out in outs for token in out.token_ids] for outs in outputs.values()]


@pytest.mark.parametrize("async_scheduling", ["off", "on"])
def test_concurrent_streams_equal_the_synchronous_result(
    make_engine: MakeEngine, run: Run, prompts: list[list[int]], async_scheduling: str
) -> None:
    params = [PARAMS, replace(PARAMS, temperature=1.0, seed=3)] * 3

    async def consume(engine: AsyncEngine) -> list[list[int]]:
        streams = [engine.generate(p, s) for p, s in zip(prompts, params, strict=True)]
        return await asyncio.gather(*map(collect, streams))

    engine = make_engine(async_scheduling=async_scheduling)
    assert serve(engine, consume) == tokens(run(make_engine(), prompts, params))


def test_a_consumer_that_leaves_hears_of_no_step_in_flight(make_engine: MakeEngine) -> None:
    async def consume(engine: AsyncEngine) -> list[int]:
        stream = engine.generate([5, 6], LONG)
        async for _ in stream:
            break
        await stream.aclose()
        return await collect(engine.generate([5, 6], PARAMS))

    expected = serve(make_engine(), consume)
    assert serve(make_engine(async_scheduling="on"), consume) == expected
    assert len(expected) == 16


def test_tokens_arrive_one_by_one_while_the_engine_goes_on(make_engine: MakeEngine) -> None:
    async def consume(engine: AsyncEngine) -> list[StepOutput]:
        return [out async for out in engine.generate([5, 6], PARAMS)]

    outputs = serve(make_engine(), consume)
    assert [len(out.token_ids) for out in outputs] == [1] * 16
    assert [out.finish_reason for out in outputs] == [None] * 15 + ["length"]


def test_requests_of_several_event_loops_are_served(
    make_engine: MakeEngine, run: Run, prompts: list[list[int]]
) -> None:
    expected = tokens(run(make_engine(), prompts, PARAMS))
    engine = AsyncEngine(make_engine())
    engine.start()
    results: dict[int, list[int]] = {}

    def consume(index: int) -> None:
        results[index] = asyncio.run(collect(engine.generate(prompts[index], PARAMS)))

    threads = [threading.Thread(target=consume, args=(i,)) for i in range(len(prompts))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    engine.close()
    assert [results[index] for index in range(len(prompts))] == expected


def test_leaving_the_iteration_aborts_the_request(make_engine: MakeEngine) -> None:
    engine = make_engine()

    async def consume(async_engine: AsyncEngine) -> None:
        stream = async_engine.generate([5, 6], LONG)
        async for _ in stream:
            break
        assert engine.has_unfinished()
        await stream.aclose()

    serve(engine, consume)
    assert engine.stats.num_generated_tokens < 200


def test_cancellation_aborts_the_request_and_leaves_the_others_alone(
    make_engine: MakeEngine, run: Run
) -> None:
    engine = make_engine()

    async def consume(async_engine: AsyncEngine) -> list[int]:
        first = asyncio.create_task(collect(async_engine.generate([5, 6], LONG)))
        second = asyncio.create_task(collect(async_engine.generate([7, 8], PARAMS)))
        await settle(lambda: engine.stats.num_generated_tokens >= 2)
        first.cancel()
        with pytest.raises(asyncio.CancelledError):
            await first
        return await second

    assert serve(engine, consume) == tokens(run(make_engine(), [[7, 8]], PARAMS))[0]
    assert engine.stats.num_generated_tokens < 200


def test_a_refused_request_raises_and_the_others_go_on(make_engine: MakeEngine) -> None:
    async def consume(engine: AsyncEngine) -> list[int]:
        good = asyncio.create_task(collect(engine.generate([5, 6], PARAMS)))
        with pytest.raises(EngineError, match="max_model_len is 256"):
            await collect(engine.generate([5] * 300, PARAMS))
        with pytest.raises(UsageError, match="empty"):
            await collect(engine.generate([], PARAMS))
        return await good

    assert len(serve(make_engine(), consume)) == 16


def test_an_error_of_the_loop_reaches_every_consumer_and_later_ones(
    make_engine: MakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = make_engine()
    compute_logits = engine.model.compute_logits
    num_calls = 0

    def break_down(hidden: Any) -> Any:
        nonlocal num_calls
        num_calls += 1
        if num_calls == 4:
            raise RuntimeError("out of magic smoke")
        return compute_logits(hidden)

    monkeypatch.setattr(engine.model, "compute_logits", break_down)

    async def consume(async_engine: AsyncEngine) -> list[BaseException | list[int]]:
        streams = [async_engine.generate([5 + i], LONG) for i in range(3)]
        results = await asyncio.gather(*map(collect, streams), return_exceptions=True)
        with pytest.raises(RuntimeError, match="magic smoke"):
            await collect(async_engine.generate([9], PARAMS))
        return results

    results = serve(engine, consume)
    assert [str(result) for result in results] == ["out of magic smoke"] * 3


def test_close_ends_streams_with_an_error_and_refuses_new_ones(make_engine: MakeEngine) -> None:
    async def consume(engine: AsyncEngine) -> None:
        stream = asyncio.create_task(collect(engine.generate([5, 6], LONG)))
        await settle(lambda: engine.engine.stats.num_generated_tokens >= 1)
        await asyncio.to_thread(engine.close)
        with pytest.raises(EngineError, match="the engine is closed"):
            await stream
        with pytest.raises(EngineError, match="the engine is closed"):
            await collect(engine.generate([5, 6], PARAMS))

    serve(make_engine(), consume)


def test_a_consumer_whose_event_loop_is_gone_does_not_stop_the_engine(
    make_engine: MakeEngine,
) -> None:
    engine = make_engine()
    async_engine = AsyncEngine(engine)
    async_engine.start()
    loop = asyncio.new_event_loop()
    stream = async_engine.generate([5, 6], LONG)
    loop.run_until_complete(anext(stream))
    loop.close()
    deadline = time.monotonic() + 20
    while engine.has_unfinished() and time.monotonic() < deadline:
        time.sleep(0.001)
    assert engine.block_pool.num_used_blocks == 0
    assert engine.stats.num_generated_tokens < 200
    assert len(asyncio.run(collect(async_engine.generate([7], PARAMS)))) == 16
    async_engine.close()


def test_an_idle_engine_uses_no_processor_time(make_engine: MakeEngine) -> None:
    async_engine = AsyncEngine(make_engine())
    async_engine.start()
    before = time.process_time()
    time.sleep(0.3)
    assert time.process_time() - before < 0.1
    async_engine.close()
