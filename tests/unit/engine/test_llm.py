import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers

from llmopt.engine.engine import Engine
from llmopt.engine.llm import LLM
from llmopt.engine.request import StepOutput
from llmopt.engine.sampling_params import SamplingParams
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


def test_deltas_of_text_are_the_text(llm: LLM) -> None:
    run = llm.begin([[5], [6, 7]], replace(PARAMS, n=2, temperature=1.0, seed=1))
    texts = {(prompt, sample): "" for prompt in (0, 1) for sample in (0, 1)}
    for prompt, delta in run:
        texts[prompt, delta.index] += delta.text
    for prompt, output in enumerate(run.outputs()):
        assert [texts[prompt, i] for i in (0, 1)] == [one.text for one in output.completions]
    assert len(set(texts.values())) == 4


def test_a_stop_string_ends_a_text_whose_next_token_is_computed_already(
    llm: LLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    (free,) = llm.generate([[5]], PARAMS)
    params = replace(PARAMS, stop=(free.text.split()[3],))
    expected = llm.generate([[5], [6, 7]], params)
    monkeypatch.setattr(llm.engine, "_looks_ahead", True)
    assert llm.generate([[5], [6, 7]], params) == expected
    assert expected[0].finish_reason == "stop"
    assert llm.engine.block_pool.num_used_blocks == 0


def test_a_stop_string_ends_a_text_and_its_computation(llm: LLM) -> None:
    (full,) = llm.generate([[5]], PARAMS)
    words = full.text.split()
    assert words[3] not in " ".join(words[:3])
    before = llm.engine.stats.num_generated_tokens
    (output,) = llm.generate([[5]], replace(PARAMS, stop=(f" {words[6]}", words[3])))
    assert output.text == " ".join(words[:3]) + " "
    completion = output.completions[0]
    assert (completion.finish_reason, completion.stop_reason) == ("stop", words[3])
    assert completion.token_ids == full.token_ids[:4]
    assert llm.engine.stats.num_generated_tokens - before == 4
    assert llm.engine.block_pool.num_used_blocks == 0


def test_samples_of_a_prompt_are_requests_of_their_own_with_seeds_that_count_up(llm: LLM) -> None:
    hot = replace(PARAMS, temperature=1.0, seed=3)
    (output,) = llm.generate([[5, 6]], replace(hot, n=3))
    alone = [llm.generate([[5, 6]], replace(hot, seed=3 + i))[0] for i in range(3)]
    assert [one.token_ids for one in output.completions] == [one.token_ids for one in alone]
    assert [one.index for one in output.completions] == [0, 1, 2]
    assert output.text == output.completions[0].text


def test_best_of_gives_the_likeliest_first(llm: LLM) -> None:
    hot = replace(PARAMS, temperature=1.5, seed=3)
    (all_five,) = llm.generate([[5, 6]], replace(hot, n=5, logprobs=0))
    (best,) = llm.generate([[5, 6]], replace(hot, n=2, best_of=5))
    means = {}
    for one in all_five.completions:
        assert one.logprobs is not None
        assert one.mean_logprob is not None
        means[one.index] = one.mean_logprob
        assert one.cumulative_logprob == pytest.approx(sum(t.logprob for t in one.logprobs))
    ranking = sorted(means, key=lambda index: -means[index])
    assert ranking[:2] != [0, 1]
    assert [one.index for one in best.completions] == ranking[:2]
    assert [one.logprobs for one in best.completions] == [None, None]
    (shown,) = llm.generate([[5, 6]], replace(hot, n=2, best_of=5, logprobs=1))
    assert [one.mean_logprob for one in shown.completions] == pytest.approx(
        [means[index] for index in ranking[:2]]
    )


def test_log_probabilities_of_prompts_only_where_they_were_asked_for(llm: LLM) -> None:
    asked, plain = llm.generate(
        [[5, 6, 7], [5, 6, 7]], [replace(PARAMS, prompt_logprobs=1), PARAMS]
    )
    assert asked.prompt_logprobs is not None
    assert [one.token_id for one in asked.prompt_logprobs] == [6, 7]
    assert plain.prompt_logprobs is None
    (single,) = llm.generate([[5]], replace(PARAMS, prompt_logprobs=1))
    assert single.prompt_logprobs == ()


def test_speculation_is_chosen_by_name_and_changes_nothing(model_path: Path, llm: LLM) -> None:
    guessing = LLM(model_path, num_blocks=64, speculation="self-quantized:8")
    assert guessing.generate([[5]], PARAMS)[0].token_ids == llm.generate([[5]], PARAMS)[0].token_ids
    assert guessing.engine.stats.num_accepted_tokens > 0


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

    def interrupt(output: Any, drafts: Any) -> Any:
        calls.append(output)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return run_model(output, drafts)

    monkeypatch.setattr(llm.engine.runner, "run", interrupt)
    with pytest.raises(KeyboardInterrupt):
        llm.generate([[5], [6]], PARAMS)
    assert not llm.engine.has_unfinished()
    assert llm.engine.block_pool.num_used_blocks == 0
