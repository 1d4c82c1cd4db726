"""What requests share: cached prefixes and forked prompts change nothing but the work."""

from collections.abc import Callable, Sequence
from dataclasses import replace

import pytest

from llmopt.engine.engine import Engine
from llmopt.engine.request import StepOutput
from llmopt.engine.sampling_params import SamplingParams
from llmopt.errors import UsageError

MakeEngine = Callable[..., Engine]
Run = Callable[..., dict[str, list[StepOutput]]]

GREEDY = SamplingParams(max_tokens=12, ignore_eos=True)


def tokens(outputs: dict[str, list[StepOutput]]) -> list[list[int]]:
    return [[token for out in outs for token in out.token_ids] for outs in outputs.values()]


def collide(_parent: int, _tokens: tuple[int, ...], _salt: str) -> int:
    return 0


def finish(engine: Engine, request_ids: Sequence[str]) -> dict[str, list[int]]:
    outputs: dict[str, list[int]] = {request_id: [] for request_id in request_ids}
    while engine.has_unfinished():
        for out in engine.step():
            outputs[out.request_id] += out.token_ids
        engine.scheduler.check_invariants()
    assert engine.scheduler.blocks.num_used_blocks == 0
    return outputs


@pytest.fixture(scope="module")
def expected(tiny_model, prompts) -> list[list[int]]:
    """Each prompt alone, in an engine that caches nothing."""
    from llmopt.engine.engine import EngineConfig

    generated = []
    for prompt in prompts:
        engine = Engine(tiny_model, EngineConfig(num_blocks=64, prefix_caching=False))
        generated.append(finish(engine, engine.add_request("a", prompt, GREEDY))["a"])
    return generated


class TestPrefixCache:
    @pytest.mark.parametrize("chunk", [3, 512])
    @pytest.mark.parametrize("collisions", [False, True])
    def test_cold_and_warm_runs_are_equal(
        self,
        make_engine: MakeEngine,
        run: Run,
        prompts: list[list[int]],
        expected: list[list[int]],
        chunk: int,
        collisions: bool,
    ) -> None:
        engine = make_engine(max_num_batched_tokens=chunk)
        if collisions:
            engine.scheduler.blocks._hash_function = collide
        assert tokens(run(engine, prompts, GREEDY)) == expected
        assert engine.stats.num_prefix_hit_tokens == 0
        num_cold = engine.stats.num_scheduled_tokens
        warm = run(engine, prompts, GREEDY)
        assert tokens(warm) == expected
        # All full blocks of 4, but the last token of a prompt of 8 is computed again.
        hits = [0, 4, 7, 8, 16, 32]
        assert [outs[0].num_prefix_hit_tokens for outs in warm.values()] == hits
        assert engine.stats.num_prefix_hit_tokens == sum(hits)
        assert engine.stats.num_prompt_tokens == 2 * sum(map(len, prompts))
        assert engine.stats.num_scheduled_tokens == 2 * num_cold - sum(hits)
        assert engine.stats.num_block_copies == 1

    def test_a_full_hit_computes_one_token_and_leaves_the_block_of_others_alone(
        self, make_engine: MakeEngine, prompts: list[list[int]], expected: list[list[int]]
    ) -> None:
        engine = make_engine()
        for _ in range(3):
            before = engine.stats.num_scheduled_tokens
            assert finish(engine, engine.add_request("a", prompts[2], GREEDY))["a"] == expected[2]
        assert engine.stats.num_scheduled_tokens - before == 12
        assert engine.stats.num_block_copies == 2

    def test_a_longer_prompt_hits_the_output_of_an_earlier_request(
        self, make_engine: MakeEngine, prompts: list[list[int]], expected: list[list[int]]
    ) -> None:
        engine = make_engine()
        finish(engine, engine.add_request("a", prompts[3], GREEDY))
        longer = prompts[3] + expected[3]  # 21 tokens; the last of them was never computed
        (request_id,) = engine.add_request("b", longer, GREEDY)
        first = engine.step()[0]
        assert first.num_prefix_hit_tokens == 20
        rest = finish(engine, [request_id])["b"]
        cold = make_engine(prefix_caching=False)
        assert [*first.token_ids, *rest] == finish(cold, cold.add_request("b", longer, GREEDY))["b"]

    def test_requests_of_different_salts_share_nothing(
        self, make_engine: MakeEngine, prompts: list[list[int]], expected: list[list[int]]
    ) -> None:
        engine = make_engine()
        for salt, hits in [("a", 0), ("b", 0), ("a", 32), ("", 32)]:
            before = engine.stats.num_prefix_hit_tokens
            ids = engine.add_request("r", prompts[5], GREEDY, cache_salt=salt)
            assert finish(engine, ids)["r"] == expected[5]
            assert engine.stats.num_prefix_hit_tokens - before == (hits if salt == "a" else 0)

    def test_it_can_be_off(
        self, make_engine: MakeEngine, run: Run, prompts: list[list[int]], expected: list[list[int]]
    ) -> None:
        engine = make_engine(prefix_caching=False)
        assert tokens(run(engine, prompts, GREEDY)) == expected
        assert tokens(run(engine, prompts, GREEDY)) == expected
        assert engine.stats.num_prefix_hit_tokens == 0
        assert engine.block_pool.num_idle_blocks == 0

    def test_the_oldest_prefix_gives_way(
        self, make_engine: MakeEngine, prompts: list[list[int]]
    ) -> None:
        engine = make_engine(num_blocks=22)  # "a" takes 11, "b" 7, "c" 11
        for request_id, prompt in [("a", prompts[5]), ("b", prompts[4]), ("c", prompts[5][::-1])]:
            finish(engine, engine.add_request(request_id, prompt, GREEDY))
        engine.add_request("a", prompts[5], GREEDY)
        (again,) = engine.step()
        assert again.num_prefix_hit_tokens == 16  # the tail of "a" was evicted, not its head

    def test_a_preempted_request_finds_its_own_blocks(
        self, make_engine: MakeEngine, run: Run, prompts: list[list[int]], expected: list[list[int]]
    ) -> None:
        engine = make_engine(num_blocks=16)
        assert tokens(run(engine, prompts, GREEDY)) == expected
        assert engine.stats.num_preemptions > 0
        assert engine.stats.num_recovered_tokens > 0


class TestForks:
    HOT = replace(GREEDY, temperature=1.5, seed=11)

    @pytest.mark.parametrize("caching", [False, True])
    @pytest.mark.parametrize("index", [0, 2, 3, 5])  # 1, 8, 9 and 33 tokens
    def test_samples_equal_requests_of_their_own(
        self, make_engine: MakeEngine, prompts: list[list[int]], index: int, caching: bool
    ) -> None:
        prompt = prompts[index]
        engine = make_engine(prefix_caching=caching)
        ids = engine.add_request("a", prompt, replace(self.HOT, n=4))
        assert ids == ("a/0", "a/1", "a/2", "a/3")
        samples = finish(engine, ids)
        assert len({tuple(sample) for sample in samples.values()}) == 4
        for number, sample in enumerate(samples.values()):
            alone = make_engine(prefix_caching=False)
            params = replace(self.HOT, seed=11 + number)
            assert finish(alone, alone.add_request("b", prompt, params))["b"] == sample
        stats = engine.stats
        shared = 3 * (len(prompt) - 1)
        assert stats.num_scheduled_tokens == 4 * (len(prompt) + 11) - shared
        if index > 0 and not caching:
            assert stats.num_forks == 3
            assert stats.num_block_copies == (0 if len(prompt) % 4 == 1 else 3)

    def test_samples_survive_preemption_and_the_end_of_their_parent(
        self, make_engine: MakeEngine, prompts: list[list[int]]
    ) -> None:
        roomy = make_engine(prefix_caching=False)
        tight = make_engine(prefix_caching=False, num_blocks=14)
        results = []
        for engine in (roomy, tight):
            ids = engine.add_request("a", prompts[4], replace(self.HOT, n=5))
            engine.step()
            engine.step()
            assert engine.abort("a/0")
            results.append(finish(engine, ids[1:]))
        for name in results[0]:
            assert results[0][name][-8:] == results[1][name][-8:]
        assert tight.stats.num_preemptions > 0
        assert min(roomy.stats.num_forks, tight.stats.num_forks) > 0

    def test_an_id_in_use_is_refused_before_any_sample_is_queued(
        self, make_engine: MakeEngine
    ) -> None:
        engine = make_engine()
        engine.add_request("a/1", [5], GREEDY)
        with pytest.raises(UsageError, match="'a/1' is already in use"):
            engine.add_request("a", [5], replace(GREEDY, n=3))
        assert len(engine.scheduler.requests) == 1
