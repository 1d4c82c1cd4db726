"""The adapter to lm-evaluation-harness, with a stand-in for its base class.

The real harness is in tests/e2e/test_lm_eval.py.
"""

import importlib
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import pytest

from llmopt.engine.llm import LLM
from llmopt.engine.sampling_params import SamplingParams
from llmopt.errors import MissingDependencyError, UsageError
from llmopt.quality.tasks import harness
from llmopt.quality.tasks.encode import encode_pair
from llmopt.quality.tasks.loglikelihood import score_pairs
from llmopt.quality.tasks.score import TaskItem, TaskScores


@dataclass(frozen=True)
class Instance:
    args: tuple[Any, ...]


@pytest.fixture
def harness_lm(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    """The module on top of a stand-in for lm_eval; forgotten afterwards."""
    stand_in = ModuleType("lm_eval.api.model")
    stand_in.LM = type("LM", (), {})  # type: ignore[attr-defined]
    for name in ("lm_eval", "lm_eval.api"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    monkeypatch.setitem(sys.modules, "lm_eval.api.model", stand_in)
    name = "llmopt.quality.tasks.harness_lm"
    sys.modules.pop(name, None)
    yield importlib.import_module(name)
    sys.modules.pop(name, None)


def instances(*arguments: tuple[Any, ...]) -> list[Instance]:
    return [Instance(each) for each in arguments]


def test_without_the_harness_the_message_says_what_to_install(monkeypatch, task_model):
    monkeypatch.setattr(harness, "find_spec", lambda name: None)
    with pytest.raises(MissingDependencyError, match=r'pip install "llmopt\[tasks\]"'):
        harness.run_harness(task_model, ["hellaswag"])


def test_loglikelihood_takes_texts(harness_lm, task_model):
    lm = harness_lm.LlmoptLM(task_model)
    texts = [("The water", " of the sea"), ("", "He"), ("The water ", "was")]
    pairs = [encode_pair(task_model.tokenizer, *text) for text in texts]
    expected = [(r.log_prob, r.is_greedy) for r in score_pairs(task_model.model, pairs)]
    assert lm.loglikelihood(instances(*texts)) == expected


def test_rolling_sums_the_windows_of_each_text(harness_lm, make_task_model):
    task_model = make_task_model(max_position_embeddings=16)
    lm = harness_lm.LlmoptLM(task_model)
    text = "The water of the sea was as still as an old house, and he went to it. " * 2
    long, empty = lm.loglikelihood_rolling(instances((text,), ("",)))
    ids = task_model.tokenizer.encode(text)
    assert len(ids) > 32
    first = score_pairs(task_model.model, [harness_lm.rolling_pairs(ids[:16], 1, 16)[0]])
    assert long < first[0].log_prob < empty == 0


def generated(task_model, prompt: str, max_tokens: int) -> str:
    llm = LLM.__new__(LLM)
    from llmopt.engine.detokenizer import TokenText
    from llmopt.engine.engine import Engine

    llm.tokenizer = task_model.tokenizer
    llm.token_text = TokenText(task_model.tokenizer)
    llm.engine = Engine(task_model.model, eos_token_ids=task_model.tokenizer.eos_token_ids)
    return llm.generate([prompt], SamplingParams(max_tokens=max_tokens))[0].text


def test_generation_is_greedy_and_ends_before_the_stop_string(harness_lm, task_model):
    lm = harness_lm.LlmoptLM(task_model)
    heard: list[tuple[int, int]] = []
    lm.on_request = lambda *counts: heard.append(counts)
    whole = generated(task_model, "The water", 24)
    stop = whole[len(whole) // 2 :][:2]
    answers = lm.generate_until(
        instances(
            ("The water", {"max_gen_toks": 24, "until": []}),
            ("The water", {"max_gen_toks": 24, "until": ["never there", stop]}),
            (
                "The water",
                {"max_new_tokens": 3, "until": "", "temperature": 0.9, "do_sample": False},
            ),
        )
    )
    assert answers == [whole, whole[: whole.index(stop)], generated(task_model, "The water", 3)]
    assert heard == [(1, 3), (2, 3), (3, 3)]


def test_prompts_that_are_too_long_lose_their_left_end(harness_lm, make_task_model):
    task_model = make_task_model(max_position_embeddings=32)
    lm = harness_lm.LlmoptLM(task_model)
    prompt = "The water of the sea was as still as an old house, and he went to it again. "
    ids = task_model.tokenizer.encode(prompt)
    assert len(ids) > 24
    cut = task_model.tokenizer.decode(ids[-24:])
    arguments = {"max_gen_toks": 8}
    long, short = lm.generate_until(instances((prompt, arguments), (cut, arguments)))
    assert long == short
    with pytest.raises(UsageError, match="generates up to 32 tokens"):
        lm.generate_until(instances((prompt, {"max_gen_toks": 32})))


def test_sampling_takes_the_tasks_parameters(harness_lm):
    arguments = {"do_sample": True, "temperature": 0.7, "top_p": 0.9, "top_k": 5}
    assert harness_lm._sampling_params(arguments, seed=3) == SamplingParams(
        max_tokens=256, temperature=0.7, top_k=5, top_p=0.9, seed=3
    )


def logged(doc_id: int, answers: Sequence[object], **metrics: object) -> dict[str, object]:
    given = {"doc_id": doc_id, "filtered_resps": list(answers), "metrics": list(metrics)}
    return {"filter": "none", **given, **metrics}


def test_samples_become_items_judged_by_the_harness():
    choices = [(-3.0, False), (-1.5, True)]
    scores = harness._scores(
        "arc",
        [
            logged(0, choices, acc=1.0, acc_norm=0.0),
            {**logged(0, choices, acc=0.0, acc_norm=0.0), "filter": "other"},
        ],
    )
    assert scores == TaskScores("arc", (TaskItem("0", (-3.0, -1.5), 1, True, False),))
    last_word = harness._scores("lambada", [logged(4, [(-2.0, False)], perplexity=-2.0, acc=0)])
    assert last_word.items == (TaskItem("4", (-2.0,), None, False, None),)
    text = harness._scores("gsm8k", [logged(1, ["42"], exact_match=1.0)])
    assert text.items == (TaskItem("1", (), None, True, None),)


def test_scores_without_context_are_no_choices():
    answers = [(-3.0, False), (-1.5, True), (-1.0, False), (-9.0, False)]
    scores = harness._scores("x", [logged(0, answers, acc=1.0, acc_mutual_info=1.0)])
    assert scores.items[0].scores == (-3.0, -1.5)


def test_a_task_without_right_and_wrong_is_refused():
    with pytest.raises(UsageError, match="wikitext has no right and wrong per item, but word_perp"):
        harness._scores("wikitext", [logged(0, [-5.0], word_perplexity=(-5.0, 3))])
