"""The engine on real weights: the tokens of transformers, however they are scheduled."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from llmopt.engine.engine import Engine, EngineConfig
from llmopt.engine.sampling_params import SamplingParams
from llmopt.models.decoder import Decoder
from llmopt.models.loader import load_model
from llmopt.models.tokenizer import load_tokenizer

pytestmark = pytest.mark.real_model

PROMPTS = [
    "The capital of Japan is",
    "Once upon a time, in a village by the sea,",
    "def fibonacci(n):",
    "Water boils at a lower temperature on a mountain because",
    "1, 1, 2, 3, 5, 8,",
    "Dear Sir or Madam,\n\nI am writing to",
    "The three laws of thermodynamics state that energy cannot be created or destroyed, that",
    "Q: Why is the sky blue?\nA:",
]
NUM_TOKENS = 64


@pytest.fixture(scope="module")
def prompt_ids(default_model: Path) -> list[list[int]]:
    tokenizer = load_tokenizer(default_model)
    return [tokenizer.encode(prompt) for prompt in PROMPTS]


@pytest.fixture(scope="module")
def expected(default_model: Path, prompt_ids: list[list[int]]) -> list[list[int]]:
    """What transformers generates, greedily and in float32, one prompt at a time."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(default_model, dtype=torch.float32).eval()
    outputs = []
    for ids in prompt_ids:
        generated = model.generate(
            torch.tensor([ids]),
            attention_mask=torch.ones(1, len(ids), dtype=torch.long),
            do_sample=False,
            min_new_tokens=NUM_TOKENS,
            max_new_tokens=NUM_TOKENS,
            repetition_penalty=1.0,
            pad_token_id=0,
        )
        outputs.append(generated[0, len(ids) :].tolist())
    return outputs


@pytest.fixture(scope="module")
def model(default_model: Path) -> Decoder:
    return load_model(default_model, dtype="float32")


@pytest.fixture(scope="module")
def generate(model: Decoder) -> Callable[..., tuple[list[list[int]], Engine]]:
    # transformers' min_new_tokens bans the end token until then; ours does the same.
    params = SamplingParams(max_tokens=NUM_TOKENS, min_tokens=NUM_TOKENS)

    def run(prompts: list[list[int]], **limits: int) -> tuple[list[list[int]], Engine]:
        engine = Engine(model, EngineConfig(**limits))
        tokens: dict[str, list[int]] = {str(i): [] for i in range(len(prompts))}
        for i, ids in enumerate(prompts):
            engine.add_request(str(i), ids, params)
        while engine.has_unfinished():
            for output in engine.step():
                tokens[output.request_id] += output.token_ids
        return list(tokens.values()), engine

    return run


def test_one_by_one(generate, prompt_ids, expected):
    assert [generate([ids])[0][0] for ids in prompt_ids] == expected


@pytest.mark.parametrize("max_num_batched_tokens", [512, 16, 9])
def test_batched_together_at_any_chunk_size(generate, prompt_ids, expected, max_num_batched_tokens):
    tokens, _ = generate(prompt_ids, max_num_batched_tokens=max_num_batched_tokens)
    assert tokens == expected


def test_preempted_for_lack_of_blocks(generate, prompt_ids, expected):
    tokens, engine = generate(prompt_ids, num_blocks=20)
    assert engine.stats.num_preemptions > 0
    assert tokens == expected
