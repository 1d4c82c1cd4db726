"""A tiny random Llama, once for all tests of the engine."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from llmopt.engine.engine import Engine, EngineConfig
from llmopt.engine.request import StepOutput
from llmopt.engine.sampling_params import SamplingParams
from llmopt.models.decoder import Decoder
from llmopt.models.loader import load_model

sys.path.insert(0, str(Path(__file__).parent))  # for hash_model.py

VOCAB_SIZE = 128
MAX_MODEL_LEN = 256


@pytest.fixture(scope="session")
def tiny_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A float32 checkpoint with end-of-sequence token 1, whose greedy output seldom repeats."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        vocab_size=VOCAB_SIZE,
        max_position_embeddings=MAX_MODEL_LEN,
        initializer_range=0.4,
        bos_token_id=0,
        eos_token_id=1,
        tie_word_embeddings=False,
    )
    path = tmp_path_factory.mktemp("tiny-llama")
    LlamaForCausalLM(config).save_pretrained(path)
    return path


@pytest.fixture(scope="session")
def tiny_model(tiny_checkpoint: Path) -> Decoder:
    return load_model(tiny_checkpoint, dtype="float32")


@pytest.fixture
def make_engine(tiny_model: Decoder) -> Callable[..., Engine]:
    def make(**config: Any) -> Engine:
        return Engine(tiny_model, EngineConfig(**{"block_size": 4, "num_blocks": 256, **config}))

    return make


@pytest.fixture
def run() -> Callable[..., dict[str, list[StepOutput]]]:
    """Serve all prompts together, checking the scheduler's laws after each step."""

    def run_all(
        engine: Engine, prompts: list[list[int]], params: SamplingParams | list[SamplingParams]
    ) -> dict[str, list[StepOutput]]:
        if isinstance(params, SamplingParams):
            params = [params] * len(prompts)
        for index, (prompt, one) in enumerate(zip(prompts, params, strict=True)):
            engine.add_request(str(index), prompt, one)
        outputs: dict[str, list[StepOutput]] = {str(i): [] for i in range(len(prompts))}
        while engine.has_unfinished():
            for out in engine.step():
                outputs[out.request_id].append(out)
            engine.scheduler.check_invariants()
        assert engine.block_pool.num_used_blocks == 0
        return outputs

    return run_all


@pytest.fixture(scope="session")
def prompts() -> list[list[int]]:
    """Six prompts of 1 to 33 tokens."""
    generator = torch.Generator().manual_seed(1)
    lengths = [1, 5, 8, 9, 17, 33]
    return [torch.randint(2, VOCAB_SIZE, (n,), generator=generator).tolist() for n in lengths]
