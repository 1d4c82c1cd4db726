"""Speculation behind `LLM`: text and stop strings are those without it."""

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers

from llmopt.engine.llm import LLM
from llmopt.engine.sampling_params import SamplingParams
from llmopt.engine.speculation.config import SpeculationConfig
from llmopt.errors import UsageError

PARAMS = SamplingParams(max_tokens=30, ignore_eos=True)


def add_tokenizer(checkpoint: Path, path: Path, words: list[str]) -> Path:
    from transformers import PreTrainedTokenizerFast

    shutil.copytree(checkpoint, path)
    vocabulary = {word: index for index, word in enumerate(words)}
    inner = Tokenizer(models.WordLevel(vocabulary, unk_token=words[2]))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    fast = PreTrainedTokenizerFast(tokenizer_object=inner, bos_token=words[0], eos_token=words[1])
    fast.save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def model_path(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("speculating") / "model"
    return add_tokenizer(tiny_checkpoint, path, [f"w{i}" for i in range(128)])


@pytest.fixture(scope="module")
def make_llm(model_path: Path) -> Callable[..., LLM]:
    def make(**settings: Any) -> LLM:
        return LLM(model_path, dtype="float32", num_blocks=64, block_size=4, **settings)

    return make


def test_stop_strings_inside_a_draft_cut_where_they_do_without(
    make_llm: Callable[..., LLM], model_path: Path
) -> None:
    speculation = SpeculationConfig(f"draft:{model_path}", 8, adaptive=False)
    plain, speculating = make_llm(), make_llm(speculation=speculation)
    [full] = plain.generate([[5, 17, 99]], PARAMS)
    words = full.text.split()
    for first in range(0, 20, 3):
        for stop in (words[first], f"{words[first]} {words[first + 1]}", words[first][-2:]):
            params = replace(PARAMS, stop=(stop,))
            [expected] = plain.generate([[5, 17, 99]], params)
            [found] = speculating.generate([[5, 17, 99]], params)
            assert (found.text, found.token_ids) == (expected.text, expected.token_ids)
            assert found.finish_reason == expected.finish_reason == "stop"
    assert speculating.engine.stats.num_accepted_tokens > 50
    assert not speculating.engine.has_unfinished()


def test_penalties_biases_and_logprobs_are_those_without(
    make_llm: Callable[..., LLM], model_path: Path
) -> None:
    params = replace(
        PARAMS,
        repetition_penalty=1.3,
        frequency_penalty=0.4,
        presence_penalty=0.2,
        logit_bias={7: 1.5},
        logprobs=2,
    )
    seeds = [replace(params, temperature=temperature, seed=3) for temperature in (0.0, 0.9)]
    prompts = [[5, 17, 99, 5, 17], [8, 9]]
    expected = make_llm().generate(prompts, seeds)
    for proposer in (f"draft:{model_path}", "self-quantized:8"):
        speculation = SpeculationConfig(proposer, 4, adaptive=False, draft_sampling="shared")
        llm = make_llm(speculation=speculation)
        found = llm.generate(prompts, seeds)
        assert [out.token_ids for out in found] == [out.token_ids for out in expected]
        for one, other in zip(
            (out.completions[0] for out in found),
            (out.completions[0] for out in expected),
            strict=True,
        ):
            assert one.logprobs is not None
            assert other.logprobs is not None
            assert [t.logprob for t in one.logprobs] == pytest.approx(
                [t.logprob for t in other.logprobs], abs=1e-4
            )
        assert llm.engine.stats.num_accepted_tokens > 0


def test_a_draft_model_with_other_tokens_is_refused(
    make_llm: Callable[..., LLM], tiny_checkpoint: Path, tmp_path: Path
) -> None:
    other = add_tokenizer(tiny_checkpoint, tmp_path / "other", [f"v{i}" for i in range(128)])
    with pytest.raises(UsageError, match="128 of 128 token ids mean other tokens"):
        make_llm(speculation=f"draft:{other}")
