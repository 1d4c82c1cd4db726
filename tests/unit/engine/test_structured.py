import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tokenizers import pre_tokenizers

from llmopt.engine.llm import LLM
from llmopt.engine.sampling_params import Constraint, SamplingParams
from llmopt.engine.structured import GrammarCompiler
from llmopt.errors import MissingDependencyError, UsageError
from llmopt.models.tokenizer import Tokenizer

SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 6},
        "age": {"type": "integer", "minimum": 0, "maximum": 150},
        "tags": {"type": "array", "items": {"enum": ["a", "b"]}, "maxItems": 3},
    },
    "required": ["name", "age", "tags"],
    "additionalProperties": False,
    "x-guidance": {"whitespace_flexible": False},
}
HOT = SamplingParams(max_tokens=120, temperature=1.0, seed=0)


@pytest.fixture(scope="module")
def model_path(
    make_tiny_llama: Callable[..., Path], byte_level_tokenizer: Callable[..., Any]
) -> Path:
    """Random weights with a real tokenizer of 600 tokens and a head of 640 rows."""
    path = make_tiny_llama(vocab_size=640, bos_token_id=1, eos_token_id=0)
    byte_level_tokenizer(pre_tokenizers.ByteLevel(add_prefix_space=False)).save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def llm(model_path: Path) -> LLM:
    pytest.importorskip("llguidance")
    return LLM(model_path, num_blocks=256)


def assert_obeys(text: str) -> None:
    content = json.loads(text)
    assert set(content) == {"name", "age", "tags"}
    assert isinstance(content["name"], str)
    assert len(content["name"]) <= 6
    assert 0 <= content["age"] <= 150
    assert len(content["tags"]) <= 3
    assert set(content["tags"]) <= {"a", "b"}


def test_random_weights_write_json_that_obeys_its_schema(llm: LLM) -> None:
    params = SamplingParams(
        max_tokens=120, temperature=1.0, seed=0, n=8, json_schema=json.dumps(SCHEMA)
    )
    (output,) = llm.generate(["Who?"], params)
    texts = {completion.text for completion in output.completions}
    assert len(texts) == 8
    for completion in output.completions:
        assert completion.finish_reason == "stop"
        assert_obeys(completion.text)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_regular_expression_a_choice_and_a_grammar_beside_a_free_request(
    llm: LLM, temperature: float
) -> None:
    free = SamplingParams(max_tokens=8, temperature=temperature, seed=1, ignore_eos=True)
    asked: list[dict[str, Any]] = [
        {"regex": r"[0-9]{3}-[a-f]{2}"},
        {"choice": ("yes", "no", 'per"haps')},
        {"grammar": 'start: "<" word ("," word){0,3} ">"\nword: /[a-z]{1,4}/'},
    ]
    params = [SamplingParams(temperature=temperature, seed=1, **one) for one in asked]
    outputs = llm.generate(["x"] * 4, [*params, free])
    assert re.fullmatch(r"[0-9]{3}-[a-f]{2}", outputs[0].text)
    assert outputs[1].text in ("yes", "no", 'per"haps')
    assert re.fullmatch(r"<[a-z]{1,4}(,[a-z]{1,4}){0,3}>", outputs[2].text)
    assert [output.finish_reason for output in outputs] == ["stop"] * 3 + ["length"]
    assert outputs[3].token_ids == llm.generate(["x"], free)[0].token_ids


def test_a_cut_output_is_the_beginning_of_one_that_matches(llm: LLM) -> None:
    params = SamplingParams(max_tokens=3, temperature=1.0, seed=2, regex=r"[0-9]{40}")
    (output,) = llm.generate(["x"], params)
    assert output.finish_reason == "length"
    assert re.fullmatch(r"[0-9]{3,39}", output.text)


@pytest.mark.parametrize("setting", ["batched", "preempted", "speculated"])
def test_a_constraint_holds_however_the_request_is_served(
    model_path: Path, llm: LLM, setting: str
) -> None:
    made: dict[str, dict[str, Any]] = {
        "batched": {"max_num_batched_tokens": 7},
        "preempted": {"num_blocks": 12, "prefix_caching": False},
        "speculated": {"speculation": "self-quantized:8"},
    }
    settings: dict[str, Any] = {"num_blocks": 256, "block_size": 4, **made[setting]}
    other = LLM(model_path, **settings)
    params = [
        SamplingParams(max_tokens=40, seed=seed, temperature=t, json_schema=json.dumps(SCHEMA))
        for seed, t in ((1, 0.0), (2, 1.0), (3, 1.0))
    ]
    expected = [llm.generate(["Who is it?"], one)[0] for one in params]
    outputs = other.generate(["Who is it?"] * 3, params)
    same = 1 if setting == "speculated" else 3  # drawn drafts: another draw of one distribution
    for output, alone in zip(outputs[:same], expected, strict=False):
        assert output.token_ids == alone.token_ids
    for output in outputs:
        if output.finish_reason == "stop":
            assert_obeys(output.text)
    assert any(output.finish_reason == "stop" for output in outputs)
    stats = other.engine.stats
    assert setting != "preempted" or stats.num_preemptions > 0
    assert setting != "speculated" or stats.num_accepted_tokens > 0


@pytest.fixture
def strict(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make the library give up on a regular expression after a few tokens, not after millions."""
    llguidance = pytest.importorskip("llguidance")
    limits = llguidance.LLParserLimits(max_lexer_states=40)
    monkeypatch.setattr(llguidance, "LLMatcher", StrictMatcher(llguidance.LLMatcher, limits))


class StrictMatcher:
    """llguidance's LLMatcher with limits of ours."""

    def __init__(self, matchers: Any, limits: Any) -> None:
        self._matchers = matchers
        self._limits = limits

    def __getattr__(self, name: str) -> Any:
        return getattr(self._matchers, name)

    def __call__(self, *arguments: Any, **more: Any) -> Any:
        return self._matchers(*arguments, limits=self._limits, **more)


TOO_COMPLEX = r"[a-f]{40}"


@pytest.mark.parametrize("speculation", ["off", "self-quantized:8"])
def test_an_output_that_gets_too_complex_ends_in_an_error_and_no_other_does(
    model_path: Path, strict: None, speculation: str
) -> None:
    free = SamplingParams(max_tokens=30, temperature=1.0, seed=1, ignore_eos=True, logprobs=0)
    complex_one = SamplingParams(max_tokens=60, temperature=1.0, seed=1, regex=TOO_COMPLEX)
    short = SamplingParams(max_tokens=60, temperature=1.0, seed=1, regex="[0-9]{3}")
    settings = {} if speculation == "off" else {"speculation": speculation}
    llm = LLM(model_path, num_blocks=256, **settings)
    outputs = llm.generate(["x"] * 3, [complex_one, free, short])
    assert [output.finish_reason for output in outputs] == ["error", "length", "stop"]
    assert re.fullmatch(r"[a-f]{1,39}", outputs[0].text)
    assert len(outputs[1].token_ids) == 30
    assert re.fullmatch(r"[0-9]{3}", outputs[2].text)
    assert not llm.engine.has_unfinished()
    assert llm.engine.scheduler.blocks.num_used_blocks == 0
    assert llm.engine.stats.num_accepted_tokens >= 0
    again = llm.generate(["x"], free)
    if speculation == "off":
        assert again[0].token_ids == outputs[1].token_ids


def test_of_several_outputs_one_that_ended_in_an_error_is_the_worst(
    model_path: Path, strict: None
) -> None:
    params = SamplingParams(
        max_tokens=60, temperature=1.0, seed=3, regex=f"{TOO_COMPLEX}|[g-z]{{2}}", n=6, best_of=8
    )
    (output,) = LLM(model_path, num_blocks=256).generate(["x"], params)
    reasons = [completion.finish_reason for completion in output.completions]
    assert set(reasons) == {"stop", "error"}
    assert reasons == sorted(reasons, reverse=True)


@pytest.fixture
def compiler(byte_level_tokenizer: Callable[..., Any]) -> GrammarCompiler:
    pytest.importorskip("llguidance")
    tokenizer = Tokenizer(byte_level_tokenizer(pre_tokenizers.ByteLevel(False)), [0])
    return GrammarCompiler(tokenizer, vocab_size=640, eos_token_ids=(0, 1))


def test_rows_behind_a_draft_follow_it_and_it_leaves_no_trace(compiler: GrammarCompiler) -> None:
    tokenizer = compiler._tokenizer
    a, b, x = (tokenizer.encode(letter)[-1] for letter in "abx")
    state = compiler.start(Constraint("regex", "ab|ba"))

    def only(row: np.ndarray) -> set[int]:
        return set(np.flatnonzero(row).tolist()) & {0, 1, a, b, x}

    for draft, expected in [
        ((), [{a, b}]),
        ((a, b), [{a, b}, {b}, {0, 1}]),
        ((b, b, a), [{a, b}, {a}, {0, 1, a, b, x}, {0, 1, a, b, x}]),
        ((x,), [{a, b}, {0, 1, a, b, x}]),
    ]:
        allowed = state.allowed(draft)
        assert allowed.shape == (1 + len(draft), 640)
        assert [only(row) for row in allowed] == expected
    state.consume([a])
    assert [only(row) for row in state.allowed()] == [{b}]
    state.consume([b, 0])
    assert [only(row) for row in state.allowed()] == [{0, 1}]


def test_tokens_that_the_tokenizer_does_not_know_are_refused(compiler: GrammarCompiler) -> None:
    allowed = compiler.start(Constraint("regex", "(.|\n)*")).allowed()[0]
    assert not allowed[600:].any()
    assert allowed[2:100].any()


@pytest.mark.parametrize(
    ("constraint", "message"),
    [
        (Constraint("json_schema", '{"type": "strin"}'), "JSON schema .* cannot be used"),
        (Constraint("json_schema", "{"), "JSON schema"),
        (Constraint("regex", "(a"), "regular expression"),
        (Constraint("grammar", "start: nothing"), "grammar"),
    ],
)
def test_malformed_constraints_are_refused_in_one_sentence(
    compiler: GrammarCompiler, constraint: Constraint, message: str
) -> None:
    with pytest.raises(UsageError, match=message) as caught:
        compiler.check(constraint)
    assert "\n" not in str(caught.value)


def test_malformed_constraints_leave_nothing_queued(llm: LLM) -> None:
    with pytest.raises(UsageError, match="regular expression"):
        llm.generate(["x", "y"], [HOT, SamplingParams(regex="(a")])
    assert not llm.engine.has_unfinished()


def test_a_model_without_an_end_of_text_is_refused(compiler: GrammarCompiler) -> None:
    endless = GrammarCompiler(compiler._tokenizer, vocab_size=640, eos_token_ids=())
    with pytest.raises(UsageError, match="the model names none"):
        endless.check(Constraint("regex", "a"))


def test_without_llguidance_one_sentence_says_what_to_install(
    model_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "llguidance", None)
    llm = LLM(model_path, num_blocks=16)
    with pytest.raises(MissingDependencyError, match=r"pip install 'llmopt\[structured\]'"):
        llm.generate(["x"], SamplingParams(regex="a"))
    assert len(llm.generate(["x"], SamplingParams(max_tokens=2, ignore_eos=True))[0].token_ids) == 2
