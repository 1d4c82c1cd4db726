import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers

from llmopt.engine.engine import Engine
from llmopt.engine.llm import LLM
from llmopt.engine.request import SamplingParams, StepOutput
from llmopt.errors import EngineError, LLMOptError, UsageError

PARAMS = SamplingParams(max_tokens=10, ignore_eos=True)


@pytest.fixture(scope="module")
def model_path(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny Llama with a tokenizer of words w0 .. w127; w0 and w1 are special."""
    from transformers import PreTrainedTokenizerFast

    path = tmp_path_factory.mktemp("tiny-llm") / "model"
    shutil.copytree(tiny_checkpoint, path)
    words = Tokenizer(models.WordLevel({f"w{i}": i for i in range(128)}, unk_token="w2"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    fast = PreTrainedTokenizerFast(tokenizer_object=words, bos_token="w0", eos_token="w1")
    fast.save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def llm(model_path: Path) -> LLM:
    return LLM(model_path, num_blocks=64)


def test_text_and_tokens_are_the_same_prompt_and_come_back_in_order(
    llm: LLM, make_engine: Callable[..., Engine], run: Callable[..., dict[str, list[StepOutput]]]
) -> None:
    outputs = llm.generate(["w5 w6 w7", [8, 9], [5, 6, 7]], PARAMS)
    reference = run(make_engine(), [[5, 6, 7], [8, 9]], PARAMS)
    expected = [tuple(out.token_ids[0] for out in outs) for outs in reference.values()]
    assert [out.token_ids for out in outputs] == [expected[0], expected[1], expected[0]]
    assert [out.prompt_token_ids for out in outputs] == [(5, 6, 7), (8, 9), (5, 6, 7)]
    assert {out.finish_reason for out in outputs} == {"length"}
    assert outputs[1].text == " ".join(f"w{i}" for i in expected[1] if i > 1)


def test_parameters_per_prompt(llm: LLM) -> None:
    outputs = llm.generate([[5], [5]], [PARAMS, replace(PARAMS, max_tokens=3)])
    assert [len(out.token_ids) for out in outputs] == [10, 3]
    assert outputs[0].token_ids[:3] == outputs[1].token_ids


def test_end_tokens_are_the_tokenizers(llm: LLM) -> None:
    assert llm.engine.eos_token_ids == llm.tokenizer.eos_token_ids == (1,)


def test_streaming_gives_the_same_tokens_as_they_come(llm: LLM) -> None:
    prompts = [[5], [6, 7]]
    streamed: list[list[int]] = [[], []]
    for index, step in llm.stream(prompts, PARAMS):
        streamed[index] += step.token_ids
    assert [tuple(ids) for ids in streamed] == [o.token_ids for o in llm.generate(prompts, PARAMS)]


def test_leaving_a_stream_leaves_nothing_queued(llm: LLM) -> None:
    stream = llm.stream([[5], [6]], PARAMS)
    next(stream)
    stream.close()
    assert not llm.engine.has_unfinished()


def test_no_prompts_give_no_outputs(llm: LLM) -> None:
    assert llm.generate([], PARAMS) == []


@pytest.mark.parametrize(
    ("prompts", "params", "error", "message"),
    [
        ("w5", PARAMS, UsageError, "Give a list"),
        ([[5], [6]], [PARAMS], UsageError, "2 prompts and 1 sampling parameters"),
        ([[5], []], PARAMS, UsageError, "the prompt is empty"),
        ([[5], [5] * 300], PARAMS, EngineError, "at most 255"),
    ],
)
def test_wrong_calls_leave_nothing_queued(
    llm: LLM, prompts: Any, params: Any, error: type[LLMOptError], message: str
) -> None:
    with pytest.raises(error, match=message):
        llm.generate(prompts, params)
    assert not llm.engine.has_unfinished()
    assert len(llm.generate([[5]], PARAMS)[0].token_ids) == 10


def test_an_interrupt_leaves_nothing_queued(llm: LLM, monkeypatch: pytest.MonkeyPatch) -> None:
    run_model = llm.engine.runner.run
    calls: list[object] = []

    def interrupt(output: Any) -> list[int]:
        calls.append(output)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return run_model(output)

    monkeypatch.setattr(llm.engine.runner, "run", interrupt)
    with pytest.raises(KeyboardInterrupt):
        llm.generate([[5], [6]], PARAMS)
    assert not llm.engine.has_unfinished()
    assert llm.engine.block_pool.num_used_blocks == 0
