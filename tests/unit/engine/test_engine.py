"""The engine on a tiny random Llama in float32, against transformers and against itself."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from llmopt.engine.engine import Engine, EngineConfig
from llmopt.engine.request import StepOutput
from llmopt.engine.sampling_params import SamplingParams
from llmopt.errors import EngineError, UsageError
from llmopt.models.decoder import Decoder

MakeEngine = Callable[..., Engine]
Run = Callable[..., dict[str, list[StepOutput]]]

GREEDY = SamplingParams(max_tokens=24, ignore_eos=True)
SAMPLED = [
    replace(GREEDY, temperature=1.0, seed=1),
    replace(GREEDY, temperature=0.7, seed=2, top_k=20),
    replace(GREEDY, temperature=1.2, seed=3, top_p=0.9),
    replace(GREEDY, temperature=1.0, seed=1, top_k=50, top_p=0.8),
    GREEDY,
    replace(GREEDY, temperature=2.0, seed=2**64 - 1),
]


def tokens(outputs: dict[str, list[StepOutput]]) -> list[list[int]]:
    return [[token for out in outs for token in out.token_ids] for outs in outputs.values()]


@pytest.fixture(scope="module")
def expected(tiny_checkpoint: Path, prompts: list[list[int]]) -> list[list[int]]:
    """Greedy tokens of transformers, one prompt at a time, with its own cache."""
    from transformers import LlamaForCausalLM

    model = LlamaForCausalLM.from_pretrained(tiny_checkpoint, dtype=torch.float32).eval()
    generated = []
    for prompt in prompts:
        ids = model.generate(
            torch.tensor([prompt]),
            attention_mask=torch.ones(1, len(prompt), dtype=torch.int64),
            max_new_tokens=24,
            min_new_tokens=24,
            do_sample=False,
            pad_token_id=0,
            eos_token_id=None,
        )
        generated.append(ids[0, len(prompt) :].tolist())
    assert len({tuple(ids) for ids in generated}) == len(prompts)
    assert min(len(set(ids)) for ids in generated) > 5
    return generated


def test_greedy_equals_transformers_in_a_batch_and_alone(
    make_engine: MakeEngine, run: Run, prompts: list[list[int]], expected: list[list[int]]
) -> None:
    engine = make_engine()
    assert tokens(run(engine, prompts, GREEDY)) == expected
    assert [tokens(run(engine, [prompt], GREEDY))[0] for prompt in prompts] == expected


@pytest.mark.parametrize("chunk", [1, 3, 4, 5, 16, 512])  # block size 4
def test_chunk_size_changes_nothing(
    make_engine: MakeEngine,
    run: Run,
    prompts: list[list[int]],
    expected: list[list[int]],
    chunk: int,
) -> None:
    engine = make_engine(max_num_batched_tokens=chunk)
    assert tokens(run(engine, prompts, GREEDY)) == expected
    num_inputs = sum(len(prompt) + 24 - 1 for prompt in prompts)
    assert engine.stats.num_scheduled_tokens == num_inputs
    assert engine.stats.num_steps >= -(-num_inputs // chunk)


@pytest.mark.parametrize("block_size", [1, 3, 16])
def test_block_size_changes_nothing(
    make_engine: MakeEngine,
    run: Run,
    prompts: list[list[int]],
    expected: list[list[int]],
    block_size: int,
) -> None:
    assert tokens(run(make_engine(block_size=block_size), prompts, GREEDY)) == expected


@pytest.mark.parametrize("chunk", [5, 512])
def test_preemption_changes_nothing_and_streams_nothing_twice(
    make_engine: MakeEngine,
    run: Run,
    prompts: list[list[int]],
    expected: list[list[int]],
    chunk: int,
) -> None:
    engine = make_engine(num_blocks=16, max_num_batched_tokens=chunk)
    outputs = run(engine, prompts, GREEDY)
    assert engine.stats.num_preemptions > 0
    assert engine.stats.peak_used_blocks == 16
    assert sum(outs[-1].num_preemptions for outs in outputs.values()) == (
        engine.stats.num_preemptions
    )
    assert tokens(outputs) == expected
    assert {len(out.token_ids) for outs in outputs.values() for out in outs} == {1}


def test_arrival_in_the_middle_changes_nothing(
    make_engine: MakeEngine, prompts: list[list[int]], expected: list[list[int]]
) -> None:
    engine = make_engine(max_num_seqs=3)
    outputs: dict[str, list[StepOutput]] = {str(i): [] for i in range(len(prompts))}
    pending = list(enumerate(prompts))
    while pending or engine.has_unfinished():
        if pending and engine.stats.num_steps % 5 == 0:
            index, prompt = pending.pop(0)
            engine.add_request(str(index), prompt, GREEDY)
        for out in engine.step():
            outputs[out.request_id].append(out)
    assert tokens(outputs) == expected


def test_seeded_sampling_is_independent_of_batching_chunking_and_preemption(
    make_engine: MakeEngine, run: Run, prompts: list[list[int]]
) -> None:
    together = tokens(run(make_engine(), prompts, SAMPLED))
    alone = [
        tokens(run(make_engine(), [prompt], params))[0]
        for prompt, params in zip(prompts, SAMPLED, strict=True)
    ]
    chunked = tokens(run(make_engine(max_num_batched_tokens=3), prompts, SAMPLED))
    tight = make_engine(num_blocks=16)
    preempted = tokens(run(tight, prompts, SAMPLED))
    assert tight.stats.num_preemptions > 0
    assert together == alone == chunked == preempted


def test_the_seed_decides_and_no_seed_is_a_fresh_one(
    make_engine: MakeEngine, run: Run, prompts: list[list[int]]
) -> None:
    state = torch.get_rng_state()
    hot = replace(GREEDY, temperature=2.0)
    seeds = [None, None, 5, 5, 6]
    results = tokens(run(make_engine(), [prompts[2]] * 5, [replace(hot, seed=s) for s in seeds]))
    assert results[2] == results[3]
    assert len({tuple(result) for result in results}) == 4
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("num_steps", range(6))
def test_abort_at_every_state_frees_all_blocks_and_harms_nobody(
    make_engine: MakeEngine, prompts: list[list[int]], expected: list[list[int]], num_steps: int
) -> None:
    engine = make_engine(max_num_batched_tokens=16, num_blocks=18, max_num_seqs=4)
    for index, prompt in enumerate(prompts):
        engine.add_request(str(index), prompt, GREEDY)
    generated: list[int] = []
    for _ in range(num_steps):
        generated += [out.token_ids[0] for out in engine.step() if out.request_id == "2"]
    for index in (0, 1, 3, 4, 5):
        assert engine.abort(str(index))
        engine.scheduler.check_invariants()
    assert not engine.abort("0")
    while engine.has_unfinished():
        generated += [out.token_ids[0] for out in engine.step()]
    assert generated == expected[2]
    assert engine.block_pool.num_used_blocks == 0


class TestStopping:
    """`expected[1]`'s fourth token plays the end of sequence."""

    @pytest.fixture
    def engine(self, tiny_model: Decoder, expected: list[list[int]]) -> Engine:
        self.eos = expected[1][3]
        assert self.eos not in expected[1][:3]
        config = EngineConfig(block_size=4, num_blocks=256)
        return Engine(tiny_model, config, eos_token_ids=(1, self.eos, 10**6))

    def finish(
        self, engine: Engine, run: Run, prompts: list[list[int]], **params: Any
    ) -> tuple[list[int], str | None]:
        outputs = run(engine, [prompts[1]], SamplingParams(**params))
        assert [out.finish_reason for out in outputs["0"][:-1]] == [None] * (len(outputs["0"]) - 1)
        return tokens(outputs)[0], outputs["0"][-1].finish_reason

    def test_eos_stops_and_is_part_of_the_output(
        self, engine: Engine, run: Run, prompts: list[list[int]], expected: list[list[int]]
    ) -> None:
        assert self.finish(engine, run, prompts) == (expected[1][:4], "stop")

    def test_ignore_eos_goes_on_to_max_tokens(
        self, engine: Engine, run: Run, prompts: list[list[int]], expected: list[list[int]]
    ) -> None:
        result = self.finish(engine, run, prompts, ignore_eos=True, max_tokens=9)
        assert result == (expected[1][:9], "length")

    def test_stop_token_ids_stop(
        self, engine: Engine, run: Run, prompts: list[list[int]], expected: list[list[int]]
    ) -> None:
        result = self.finish(
            engine, run, prompts, ignore_eos=True, stop_token_ids=(expected[1][2],)
        )
        assert result == (expected[1][:3], "stop")

    def test_max_tokens_before_eos_is_a_length_stop(
        self, engine: Engine, run: Run, prompts: list[list[int]], expected: list[list[int]]
    ) -> None:
        assert self.finish(engine, run, prompts, max_tokens=3) == (expected[1][:3], "length")

    @pytest.mark.parametrize("temperature", [0.0, 1.0])
    def test_min_tokens_makes_stop_tokens_impossible(
        self, engine: Engine, run: Run, prompts: list[list[int]], temperature: float
    ) -> None:
        """With all tokens but 0 and 2 stop tokens, only these come before min_tokens are there."""
        assert self.eos > 2
        ids, reason = self.finish(
            engine,
            run,
            prompts,
            min_tokens=8,
            temperature=temperature,
            seed=0,
            stop_token_ids=tuple(range(3, 128)),
        )
        assert set(ids[:8]) <= {0, 2}
        assert len(ids) > 8
        assert (ids[-1] not in {0, 2}, reason) == (True, "stop")


def test_end_tokens_are_those_of_the_config_unless_given(tiny_model: Decoder) -> None:
    config = EngineConfig(num_blocks=1)
    assert Engine(tiny_model, config).eos_token_ids == (1,)
    assert Engine(tiny_model, config, eos_token_ids=(5, 6)).eos_token_ids == (5, 6)


def test_max_tokens_are_clipped_to_the_model_length(make_engine: MakeEngine, run: Run) -> None:
    engine = make_engine(max_model_len=20)
    outputs = run(engine, [[5] * 15], replace(GREEDY, max_tokens=100))
    assert len(outputs["0"]) == 5
    assert outputs["0"][-1].finish_reason == "length"


@pytest.mark.parametrize(
    ("prompt", "params", "message"),
    [
        ([], {}, "the prompt is empty"),
        ([5, 128], {}, "token 128 and the model knows tokens 0 to 127"),
        ([-1], {}, "the prompt has token -1"),
        ([5], {"stop_token_ids": (500,)}, "stop_token_ids has token 500"),
    ],
)
def test_requests_that_make_no_sense_are_refused(
    make_engine: MakeEngine, prompt: list[int], params: dict[str, Any], message: str
) -> None:
    engine = make_engine()
    with pytest.raises(UsageError, match=message):
        engine.add_request("a", prompt, SamplingParams(**params))
    assert not engine.has_unfinished()
    assert engine.step() == []


def test_requests_that_can_never_fit_are_refused(make_engine: MakeEngine) -> None:
    with pytest.raises(EngineError, match="at most 255 tokens"):
        make_engine().add_request("a", [5] * 256, GREEDY)
    with pytest.raises(EngineError, match="max_tokens of at most 9"):
        make_engine(num_blocks=4).add_request("a", [5] * 8, GREEDY)


@pytest.mark.parametrize(
    "name",
    [
        "block_size",
        "num_blocks",
        "kv_memory_bytes",
        "max_num_batched_tokens",
        "max_num_seqs",
        "max_model_len",
    ],
)
def test_limits_below_one_are_refused_by_name(name: str) -> None:
    with pytest.raises(UsageError, match=f"^{name} is 0"):
        EngineConfig(**{name: 0})


def test_a_model_len_beyond_the_model_is_refused(tiny_model: Decoder) -> None:
    with pytest.raises(UsageError, match="max_model_len is 257 and the model's limit is 256"):
        Engine(tiny_model, EngineConfig(max_model_len=257))


def test_the_default_cache_holds_the_largest_batch_and_no_more(tiny_model: Decoder) -> None:
    engine = Engine(tiny_model, EngineConfig(max_num_seqs=3, block_size=16))
    assert engine.block_pool.num_blocks == 3 * 256 // 16
