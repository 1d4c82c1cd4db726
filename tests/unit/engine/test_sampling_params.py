import math
from dataclasses import replace
from typing import Any

import pytest
import torch

from llmopt.engine.sampling_params import Constraint, SamplingParams
from llmopt.errors import UsageError
from llmopt.layers.penalties import Penalties, TokenCounts, penalize
from llmopt.layers.sampler import SamplingRow, distribution


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"max_tokens": 0}, "max_tokens is 0. Give at least 1"),
        ({"min_tokens": -1}, "min_tokens is -1"),
        ({"min_tokens": 9, "max_tokens": 8}, r"from 0 to max_tokens \(8\)"),
        ({"temperature": -0.1}, "temperature is -0.1"),
        ({"temperature": math.nan}, "temperature is nan"),
        ({"temperature": 1e39}, "temperature is 1e.39.* a number up to 100000"),
        ({"top_k": 0}, "top_k is 0"),
        ({"top_p": 0.0}, "top_p is 0.0"),
        ({"top_p": 1.1}, "top_p is 1.1"),
        ({"min_p": -0.1}, "min_p is -0.1"),
        ({"min_p": 1.1}, "min_p is 1.1"),
        ({"seed": 2**64}, "seed is"),
        ({"repetition_penalty": 0.0}, "repetition_penalty is 0.0"),
        ({"repetition_penalty": math.inf}, "repetition_penalty is inf"),
        ({"repetition_penalty": 1e-40}, "repetition_penalty is 1e-40. .* from 0.01 to 100; 1 is"),
        ({"frequency_penalty": 2.1}, "frequency_penalty is 2.1. Give a number from -2 to 2"),
        ({"presence_penalty": math.nan}, "presence_penalty is nan"),
        ({"logit_bias": {5: math.inf}}, "logit_bias of token 5 is inf"),
        ({"logit_bias": {5: -math.inf}}, "logit_bias of token 5 is -inf"),
        ({"logit_bias": {5: 1e39}}, "logit_bias of token 5 is 1e.39.* from -10000 to 10000"),
        ({"logprobs": -1}, "logprobs is -1"),
        ({"prompt_logprobs": -1}, "prompt_logprobs is -1"),
        ({"n": 0}, "n is 0"),
        ({"n": 3, "best_of": 2}, r"best_of is 2. Give at least n \(3\)"),
        ({"stop": "END"}, "stop is 'END'. Give a tuple"),
        ({"stop": ("END", "")}, "none of them empty"),
        ({"choice": "yes"}, "choice is 'yes'"),
        ({"regex": ""}, "regex is empty"),
        ({"regex": "a", "choice": ("b",)}, "match regex and choice. Give one"),
        ({"json_schema": "{}", "ignore_eos": True}, "ignore_eos forbids its end"),
        ({"grammar": "start: /a/", "min_tokens": 2}, "min_tokens forbids its end"),
    ],
)
def test_values_out_of_range_are_refused(given: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        SamplingParams(**given)


def test_the_ends_of_ranges_are_accepted() -> None:
    ends = SamplingParams(
        max_tokens=1,
        min_tokens=1,
        top_k=1,
        min_p=1.0,
        seed=2**64 - 1,
        frequency_penalty=2.0,
        presence_penalty=-2.0,
        logprobs=0,
        n=2,
        best_of=2,
        stop=("a",),
    )
    assert (ends.min_tokens, ends.seed, ends.num_samples) == (1, 2**64 - 1, 2)
    assert (ends.frequency_penalty, ends.presence_penalty) == (2.0, -2.0)


@pytest.mark.parametrize("temperature", [1e-5, 1e5])
@pytest.mark.parametrize("penalty", [0.01, 100.0])
@pytest.mark.parametrize("bias", [-1e4, 1e4])
def test_within_the_ranges_logits_stay_finite(
    temperature: float, penalty: float, bias: float
) -> None:
    params = SamplingParams(
        temperature=temperature, repetition_penalty=penalty, logit_bias={0: bias}
    )
    counts = TokenCounts(8, torch.device("cpu"))
    asked = Penalties(
        counts.open([0, 1]),
        repetition=params.repetition_penalty,
        biases=tuple(params.logit_bias.items()),
    )
    logits = penalize(torch.linspace(-1e4, 1e4, 8)[None], [asked], counts)
    row = SamplingRow(params.temperature, None, 1.0, seed=0, position=0)
    probs = distribution(logits, [row])
    assert bool(probs.isfinite().all())
    assert probs.sum().item() == pytest.approx(1)


def test_parameters_can_be_keys_and_are_compared_with_their_biases() -> None:
    params = SamplingParams(logit_bias={5: 1.0})
    assert hash(params) == hash(replace(params))
    assert params == replace(params)
    assert params != replace(params, logit_bias={5: 2.0})


def test_log_probabilities_are_computed_where_the_best_outputs_are_looked_for() -> None:
    assert SamplingParams().num_logprobs is None
    assert SamplingParams(logprobs=3).num_logprobs == 3
    assert SamplingParams(n=2).num_logprobs is None
    assert SamplingParams(n=2, best_of=2).num_logprobs is None
    assert SamplingParams(n=2, best_of=3).num_logprobs == 0
    assert SamplingParams(n=2, best_of=3, logprobs=5).num_logprobs == 5
    assert SamplingParams(n=2, best_of=3).num_samples == 3


@pytest.mark.parametrize(
    "given",
    [
        {"repetition_penalty": 1.1},
        {"frequency_penalty": -0.5},
        {"presence_penalty": 0.5},
        {"logit_bias": {3: -1.0}},
        {"regex": "a"},
        {"choice": ("a",)},
        {"json_schema": "{}"},
        {"grammar": "start: /a/"},
    ],
)
def test_what_changes_logits_is_known(given: dict[str, Any]) -> None:
    assert SamplingParams(**given).changes_logits
    assert not SamplingParams(temperature=1.0, top_k=3, top_p=0.5, min_p=0.1).changes_logits


def test_choices_become_a_grammar_of_quoted_texts() -> None:
    params = SamplingParams(choice=("yes", 'say "no"'))
    assert params.constraint == Constraint("grammar", 'start: "yes" | "say \\"no\\""')
    assert SamplingParams(regex="a+").constraint == Constraint("regex", "a+")
    assert SamplingParams().constraint is None
