"""What a request may ask for, through the whole engine: as transformers, and however served."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from llmopt.engine.engine import Engine
from llmopt.engine.request import StepOutput
from llmopt.engine.sampling_params import SamplingParams
from llmopt.engine.speculation.config import SpeculationConfig
from llmopt.errors import UsageError
from llmopt.layers.token_logprobs import TokenLogprobs

MakeEngine = Callable[..., Engine]
Run = Callable[..., dict[str, list[StepOutput]]]

GREEDY = SamplingParams(max_tokens=24, ignore_eos=True)
HOT = replace(GREEDY, temperature=1.2, seed=5)
FEATURES = [
    replace(HOT, min_p=0.05, repetition_penalty=1.3, logprobs=2),
    replace(GREEDY, frequency_penalty=0.7, presence_penalty=0.5),
    replace(HOT, top_k=30, top_p=0.9, min_p=0.02, logit_bias={7: 3.0, 9: -100.0}),
    replace(GREEDY, repetition_penalty=1.5, prompt_logprobs=1),
    replace(HOT, frequency_penalty=-0.3, logprobs=0, seed=6),
    replace(GREEDY, logprobs=3),
]


def tokens(outputs: list[StepOutput]) -> list[int]:
    return [token_id for out in outputs for token_id in out.token_ids]


def logprobs(outputs: list[StepOutput]) -> list[TokenLogprobs]:
    return [one for out in outputs for one in out.logprobs]


def of_prompt(outputs: list[StepOutput]) -> list[TokenLogprobs]:
    assert all(not out.prompt_logprobs for out in outputs[1:])
    return list(outputs[0].prompt_logprobs)


def assert_alike(one: list[TokenLogprobs], other: list[TokenLogprobs]) -> None:
    """Equal to the rounding of kernels for different batch shapes."""
    assert [(a.token_id, a.rank) for a in one] == [(b.token_id, b.rank) for b in other]
    for a, b in zip(one, other, strict=True):
        assert a.logprob == pytest.approx(b.logprob, abs=1e-4)
        assert [t for t, _ in a.top] == [t for t, _ in b.top]


@pytest.fixture(scope="module")
def reference(tiny_checkpoint: Path) -> Any:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(tiny_checkpoint, dtype=torch.float32).eval()


@pytest.fixture
def alone(make_engine: MakeEngine, run: Run, prompts: list[list[int]]) -> list[list[StepOutput]]:
    """Each prompt with its features, by itself."""
    pairs = zip(prompts, FEATURES, strict=True)
    return [run(make_engine(prefix_caching=False), [p], one)["0"] for p, one in pairs]


@pytest.mark.parametrize(
    "config",
    [
        {},
        {"max_num_batched_tokens": 7},
        {"num_blocks": 24},
        {"num_blocks": 24, "preemption": "swap"},
        {
            "speculation": SpeculationConfig(
                "self-quantized:8", adaptive=False, draft_sampling="shared"
            )
        },
    ],
    ids=["batched", "chunked", "preempted", "swapped", "speculated"],
)
def test_features_do_not_depend_on_how_a_request_is_served(
    make_engine: MakeEngine,
    run: Run,
    prompts: list[list[int]],
    alone: list[list[StepOutput]],
    config: dict[str, Any],
) -> None:
    engine = make_engine(**config)
    for temperature in ("cold", "warm"):
        outputs = run(engine, prompts, FEATURES)
        for index, expected in enumerate(alone):
            actual = outputs[str(index)]
            assert tokens(actual) == tokens(expected), temperature
            assert_alike(logprobs(actual), logprobs(expected))
            assert_alike(of_prompt(actual), of_prompt(expected))
    assert engine.stats.num_prefix_hit_tokens > 0
    if "num_blocks" in config:
        assert engine.stats.num_preemptions > 0
    if "speculation" in config:
        assert engine.stats.num_accepted_tokens > 0


def test_features_change_what_is_generated(
    make_engine: MakeEngine, run: Run, prompts: list[list[int]], alone: list[list[StepOutput]]
) -> None:
    off = {
        "min_p": 0.0,
        "repetition_penalty": 1.0,
        "frequency_penalty": 0.0,
        "presence_penalty": 0.0,
        "logit_bias": {},
    }
    plain = run(make_engine(), prompts, [replace(one, **off) for one in FEATURES])
    for index, one in enumerate(FEATURES[:5]):
        assert tokens(plain[str(index)]) != tokens(alone[index]), one
    assert 9 not in tokens(alone[2])


def test_a_request_forgets_those_before_it(
    make_engine: MakeEngine, run: Run, prompts: list[list[int]], alone: list[list[StepOutput]]
) -> None:
    engine = make_engine()
    for _ in range(2):  # the same ids, the same slots
        assert tokens(run(engine, prompts[:2], FEATURES[:2])["1"]) == tokens(alone[1])
    assert tokens(run(engine, [prompts[1]], FEATURES[1])["0"]) == tokens(alone[1])


@pytest.mark.parametrize("penalty", [0.8, 1.3])
def test_repetition_penalty_gives_the_tokens_of_transformers(
    make_engine: MakeEngine, run: Run, prompts: list[list[int]], reference: Any, penalty: float
) -> None:
    params = replace(GREEDY, repetition_penalty=penalty)
    outputs = run(make_engine(), prompts, params)
    for index, prompt in enumerate(prompts):
        generated = reference.generate(
            torch.tensor([prompt]),
            attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
            do_sample=False,
            repetition_penalty=penalty,
            max_new_tokens=24,
            eos_token_id=None,
            pad_token_id=0,
        )
        assert tokens(outputs[str(index)]) == generated[0, len(prompt) :].tolist()


def test_log_probabilities_are_the_transition_scores_of_transformers(
    make_engine: MakeEngine, run: Run, prompts: list[list[int]], reference: Any
) -> None:
    outputs = run(make_engine(), prompts, replace(GREEDY, logprobs=4))
    for index, prompt in enumerate(prompts):
        generated = reference.generate(
            torch.tensor([prompt]),
            attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
            do_sample=False,
            max_new_tokens=24,
            eos_token_id=None,
            pad_token_id=0,
            output_scores=True,
            return_dict_in_generate=True,
        )
        expected = reference.compute_transition_scores(
            generated.sequences, generated.scores, normalize_logits=True
        )[0]
        found = logprobs(outputs[str(index)])
        actual = torch.tensor([one.logprob for one in found])
        torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-4)
        assert {one.rank for one in found} == {1}
        for one, scores in zip(found, generated.scores, strict=True):
            values, best = torch.log_softmax(scores[0], -1).topk(4)
            assert [token_id for token_id, _ in one.top] == best.tolist()
            top = torch.tensor([logprob for _, logprob in one.top])
            torch.testing.assert_close(top, values, rtol=1e-4, atol=1e-4)


def test_log_probabilities_are_those_of_the_model_whatever_was_done_to_its_logits(
    make_engine: MakeEngine, run: Run, prompts: list[list[int]], reference: Any
) -> None:
    bent = replace(FEATURES[2], logprobs=0, repetition_penalty=1.2)
    output = run(make_engine(), [prompts[2]], bent)["0"]
    sequence = prompts[2] + tokens(output)
    with torch.no_grad():
        expected = torch.log_softmax(reference(torch.tensor([sequence])).logits[0], -1)
    for offset, one in enumerate(logprobs(output), start=len(prompts[2])):
        assert one.token_id == sequence[offset]
        assert one.logprob == pytest.approx(float(expected[offset - 1, one.token_id]), abs=1e-4)


@pytest.mark.parametrize("config", [{}, {"max_num_batched_tokens": 5}, {"num_blocks": 20}], ids=str)
def test_prompt_log_probabilities_are_those_of_one_forward_pass(
    make_engine: MakeEngine,
    run: Run,
    prompts: list[list[int]],
    reference: Any,
    config: dict[str, Any],
) -> None:
    engine = make_engine(**config)
    run(engine, prompts, GREEDY)  # fills the prefix cache
    before = engine.stats.num_prefix_hit_tokens
    outputs = run(engine, prompts, replace(GREEDY, prompt_logprobs=2))
    assert engine.stats.num_prefix_hit_tokens == before
    for index, prompt in enumerate(prompts):
        with torch.no_grad():
            expected = torch.log_softmax(reference(torch.tensor([prompt])).logits[0], -1)
        found = of_prompt(outputs[str(index)])
        assert [one.token_id for one in found] == prompt[1:]
        for position, one in enumerate(found):
            logprob = float(expected[position, one.token_id])
            assert one.logprob == pytest.approx(logprob, abs=1e-4)
            assert [t for t, _ in one.top] == expected[position].topk(2).indices.tolist()
    run(engine, prompts, GREEDY)
    if "num_blocks" in config:
        assert engine.stats.num_preemptions > 0
    else:
        assert engine.stats.num_prefix_hit_tokens > before


def test_samples_of_one_prompt_report_its_log_probabilities_once(
    make_engine: MakeEngine, prompts: list[list[int]]
) -> None:
    engine = make_engine(prefix_caching=False)
    ids = engine.add_request("a", prompts[4], replace(HOT, n=3, prompt_logprobs=0))
    found: dict[str, int] = dict.fromkeys(ids, 0)
    while engine.has_unfinished():
        for out in engine.step():
            found[out.request_id] += len(out.prompt_logprobs)
    assert found == {"a/0": len(prompts[4]) - 1, "a/1": 0, "a/2": 0}
    assert engine.stats.num_forks == 2


def test_log_probabilities_end_with_the_tokens_where_a_stop_token_cuts_a_draft(
    make_engine: MakeEngine, run: Run, prompts: list[list[int]]
) -> None:
    guessing = SpeculationConfig("self-quantized:8", adaptive=False)
    (plain,) = run(make_engine(), [prompts[2]], replace(GREEDY, logprobs=0)).values()
    cut = 0
    for length in range(3, 12):
        stop = tokens(plain)[length - 1]
        params = replace(GREEDY, logprobs=0, stop_token_ids=(stop,), min_tokens=length - 1)
        engine = make_engine(speculation=guessing)
        (outputs,) = run(engine, [prompts[2]], params).values()
        assert all(len(out.logprobs) == len(out.token_ids) for out in outputs)
        cut += outputs[-1].finish_reason == "stop" and 1 < len(outputs[-1].token_ids) < 6
    assert cut > 0


def test_priority_comes_from_the_parameters(make_engine: MakeEngine) -> None:
    engine = make_engine(policy="priority", max_num_seqs=1)
    for priority in (3, 1, 2):
        engine.add_request(str(priority), [5], replace(GREEDY, max_tokens=1, priority=priority))
    order = []
    while engine.has_unfinished():
        order += [out.request_id for out in engine.step()]
    assert order == ["1", "2", "3"]


def test_tokens_of_a_bias_have_to_exist(make_engine: MakeEngine) -> None:
    with pytest.raises(UsageError, match="logit_bias has token 128"):
        make_engine().add_request("a", [5], replace(GREEDY, logit_bias={128: 1.0}))


def test_an_engine_without_a_tokenizer_refuses_constraints(make_engine: MakeEngine) -> None:
    engine = make_engine()
    with pytest.raises(UsageError, match="regex is given to an engine that does not know"):
        engine.add_request("a", [5], SamplingParams(regex="a+"))
    assert not engine.has_unfinished()


def test_a_snapshot_counts_and_stays_as_it_was(
    make_engine: MakeEngine, prompts: list[list[int]]
) -> None:
    engine = make_engine(max_num_seqs=2)
    for index, prompt in enumerate(prompts[:5]):
        engine.add_request(str(index), prompt, GREEDY)
    engine.step()
    first = engine.snapshot()
    assert (first.num_running, first.num_waiting) == (2, 3)
    assert first.num_used_blocks == 3  # prompts of 1 and 5 tokens in blocks of 4
    assert first.kv_use == 3 / 256
    assert first.stats.num_scheduled_tokens == 6
    times = first.times
    assert min(times.schedule_s, times.forward_s, times.sample_s, times.update_s) > 0
    total_s = times.total_s
    engine.step()
    assert first.stats.num_steps == 1
    assert first.times.total_s == total_s
    second = engine.snapshot()
    assert second.stats.num_steps == 2
    assert second.times.total_s > total_s
    assert second.speculation is None
