import asyncio
from collections.abc import Callable, Coroutine
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tokenizers import pre_tokenizers

from llmopt.engine.async_engine import AsyncEngine
from llmopt.engine.llm import LLM
from llmopt.engine.outputs import TextDelta
from llmopt.engine.sampling_params import SamplingParams
from llmopt.engine.text_deltas import sample_index, stream_text

PARAMS = SamplingParams(max_tokens=30, ignore_eos=True, temperature=1.0, seed=4)
PROMPT = [5, 6, 7]


@pytest.fixture(scope="module")
def llm(make_tiny_llama: Callable[..., Path], byte_level_tokenizer: Callable[..., Any]) -> LLM:
    path = make_tiny_llama(vocab_size=600, bos_token_id=1, eos_token_id=0)
    byte_level_tokenizer(pre_tokenizers.ByteLevel(add_prefix_space=False)).save_pretrained(path)
    return LLM(path, num_blocks=64)


def serve(llm: LLM, consume: Callable[[AsyncEngine], Coroutine[Any, Any, Any]]) -> Any:
    """Nothing may be left queued or allocated afterwards."""

    async def main() -> Any:
        async with AsyncEngine(llm.engine) as engine:
            result = await consume(engine)
            while llm.engine.has_unfinished():
                await asyncio.sleep(0.001)
            assert llm.engine.block_pool.num_used_blocks == 0
            return result

    return asyncio.run(asyncio.wait_for(main(), timeout=60))


def collect(llm: LLM, params: SamplingParams) -> list[TextDelta]:
    async def consume(engine: AsyncEngine) -> list[TextDelta]:
        return [delta async for delta in stream_text(engine, llm.token_text, PROMPT, params)]

    found: list[TextDelta] = serve(llm, consume)
    return found


def test_deltas_of_each_sample_are_its_text(llm: LLM) -> None:
    params = replace(PARAMS, n=3)
    (expected,) = llm.generate([PROMPT], params)
    deltas = collect(llm, params)
    for index, completion in enumerate(expected.completions):
        own = [delta for delta in deltas if delta.index == index]
        assert "".join(delta.text for delta in own) == completion.text
        assert [delta.finish_reason for delta in own] == [None] * 29 + ["length"]


def test_a_stop_string_ends_one_sample_and_leaves_the_others(llm: LLM) -> None:
    params = replace(PARAMS, n=3)
    (expected,) = llm.generate([PROMPT], params)
    texts = [completion.text for completion in expected.completions]
    stop = next(
        texts[0][i : i + 2]
        for i in range(4, len(texts[0]) - 2)
        if texts[0][i : i + 2] not in texts[1] + "|" + texts[2]
    )
    deltas = collect(llm, replace(params, stop=(stop,)))
    ends = {delta.index: delta for delta in deltas if delta.finish_reason is not None}
    joined = ["".join(d.text for d in deltas if d.index == index) for index in range(3)]
    assert joined == [texts[0][: texts[0].index(stop)], *texts[1:]]
    assert [ends[index].finish_reason for index in range(3)] == ["stop", "length", "length"]
    assert ends[0].stop_reason == stop
    assert [delta for delta in deltas if delta.index == 0][-1] is ends[0]


def test_a_sample_that_a_stop_string_ended_is_computed_no_further(llm: LLM) -> None:
    long = replace(PARAMS, n=2, max_tokens=300)
    (expected,) = llm.generate([PROMPT], long)
    texts = [completion.text for completion in expected.completions]
    pairs = {texts[0][i : i + 3] for i in range(40)}
    stop = min(pair for pair in pairs if len(pair) == 3 and pair not in texts[1])
    before = llm.engine.stats.num_generated_tokens
    deltas = collect(llm, replace(long, stop=(stop,)))
    assert sum(delta.finish_reason == "stop" for delta in deltas) == 1
    assert llm.engine.stats.num_generated_tokens - before < 500


def test_leaving_aborts_all_samples(llm: LLM) -> None:
    before = llm.engine.stats.num_generated_tokens

    async def consume(engine: AsyncEngine) -> None:
        params = replace(PARAMS, n=3, max_tokens=400)
        stream = stream_text(engine, llm.token_text, PROMPT, params)
        async for _ in stream:
            break
        await stream.aclose()

    serve(llm, consume)
    assert llm.engine.stats.num_generated_tokens - before < 3 * 400


def test_an_abort_from_elsewhere_ends_the_stream(llm: LLM) -> None:
    async def consume(engine: AsyncEngine) -> list[TextDelta]:
        deltas = []
        long = replace(PARAMS, max_tokens=400)
        async for delta in stream_text(engine, llm.token_text, PROMPT, long):
            if not deltas:
                engine.abort(delta.step.request_id)
            deltas.append(delta)
        return deltas

    deltas = serve(llm, consume)
    assert deltas[-1].finish_reason == "abort"
    assert len(deltas) < 400


def test_ids_of_samples() -> None:
    assert [sample_index(name) for name in ("7", "7/0", "7/12")] == [0, 0, 12]
