"""The engine with speculation gives what it gives without, and in fewer steps."""

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from scipy import stats

from llmopt.engine.engine import Engine, EngineConfig
from llmopt.engine.request import StepOutput
from llmopt.engine.sampling_params import SamplingParams
from llmopt.engine.speculation.config import SpeculationConfig
from llmopt.engine.speculation.speculator import Speculator
from llmopt.errors import UsageError
from llmopt.models.decoder import Decoder
from llmopt.models.loader import load_model

MakeEngine = Callable[..., Engine]
Run = Callable[..., dict[str, list[StepOutput]]]

GREEDY = SamplingParams(max_tokens=24, ignore_eos=True)
PROPOSERS = ["ngram", "self-quantized:8", "layers:1", "draft"]


def tokens(outputs: dict[str, list[StepOutput]]) -> list[list[int]]:
    return [[token for out in outs for token in out.token_ids] for outs in outputs.values()]


@pytest.fixture(scope="module")
def repeating(prompts: list[list[int]]) -> list[list[int]]:
    """Prompts that n-grams find something in."""
    return [prompt * 3 for prompt in reversed(prompts)]


@pytest.fixture(scope="module")
def plain(tiny_model: Decoder, repeating: list[list[int]]) -> list[list[int]]:
    """Greedy tokens without speculation, one request at a time."""
    results = []
    for prompt in repeating:
        engine = Engine(tiny_model, EngineConfig(block_size=4, num_blocks=64))
        engine.add_request("0", prompt, GREEDY)
        out: list[int] = []
        while engine.has_unfinished():
            out += [token for step in engine.step() for token in step.token_ids]
        results.append(out)
    return results


@pytest.fixture
def make_speculating(tiny_model: Decoder, tiny_checkpoint: Path) -> MakeEngine:
    """An engine that always drafts as much as it may; `adaptive=True` for the other way."""

    def make(
        proposer: str, k: int, *, adaptive: bool = False, sampling: str = "rejection", **config: Any
    ) -> Engine:
        if proposer == "draft":
            proposer = f"draft:{tiny_checkpoint}"
        speculation = SpeculationConfig(
            proposer, k, adaptive=adaptive, draft_sampling=sampling, min_ngram=1
        )
        settings = {"block_size": 4, "num_blocks": 256, "speculation": speculation, **config}
        return Engine(tiny_model, EngineConfig(**settings))

    return make


def speculator(engine: Engine) -> Speculator:
    assert engine.speculator is not None
    return engine.speculator


@pytest.mark.parametrize("k", range(9))
@pytest.mark.parametrize("proposer", PROPOSERS)
def test_greedy_output_is_that_without_speculation(
    make_speculating: MakeEngine,
    run: Run,
    repeating: list[list[int]],
    plain: list[list[int]],
    proposer: str,
    k: int,
) -> None:
    engine = make_speculating(proposer, k)
    assert tokens(run(engine, repeating, GREEDY)) == plain
    if k == 0:
        assert engine.speculator is None
        return
    counted = speculator(engine).stats
    assert counted.num_accepted_tokens == engine.stats.num_accepted_tokens > 0
    assert counted.num_draft_tokens == engine.stats.num_draft_tokens > 0
    assert len(counted.drafted_by_position) == k
    assert counted.num_decode_tokens == counted.num_decodes + counted.num_accepted_tokens
    if proposer == "draft":  # the model itself: everything is taken
        assert counted.acceptance_rate == 1
        assert engine.stats.num_steps == 1 + -(-23 // (k + 1))


@pytest.mark.parametrize("proposer", PROPOSERS)
@pytest.mark.parametrize(
    "limits",
    [
        {"num_blocks": 40},
        {"num_blocks": 34, "max_num_batched_tokens": 64},
        {"num_blocks": 40, "preemption": "swap", "max_prefill_chunk": 2},
        {"num_blocks": 40, "prefix_caching": False, "policy": "priority"},
        {"max_num_batched_tokens": 5},
        {"max_num_seqs": 2, "policy": "static"},
    ],
    ids=lambda limits: "-".join(map(str, limits.values())),
)
def test_tight_limits_change_nothing(
    make_speculating: MakeEngine,
    run: Run,
    repeating: list[list[int]],
    plain: list[list[int]],
    proposer: str,
    limits: dict[str, Any],
) -> None:
    engine = make_speculating(proposer, 4, **limits)
    assert tokens(run(engine, repeating, GREEDY)) == plain
    assert engine.stats.num_accepted_tokens > 0
    assert (engine.stats.num_preemptions > 0) == ("num_blocks" in limits)


@pytest.mark.parametrize("proposer", PROPOSERS)
def test_adaptive_lengths_change_nothing_and_requests_are_forgotten(
    make_speculating: MakeEngine,
    run: Run,
    repeating: list[list[int]],
    plain: list[list[int]],
    proposer: str,
) -> None:
    engine = make_speculating(proposer, 6, adaptive=True)
    for _ in range(3):
        assert tokens(run(engine, repeating, GREEDY)) == plain
    assert engine.stats.num_accepted_tokens > 0
    assert engine.stats.num_prefix_hit_tokens > 0
    assert speculator(engine)._acceptance == {}
    assert speculator(engine)._drafted_before == set()
    if proposer == "ngram":
        assert speculator(engine).proposer._indices == {}
    else:
        assert speculator(engine).proposer.blocks.num_used_blocks == 0


@pytest.mark.parametrize("proposer", PROPOSERS[1:])
def test_every_end_inside_a_draft_is_where_it_is_without_one(
    make_speculating: MakeEngine,
    run: Run,
    repeating: list[list[int]],
    plain: list[list[int]],
    proposer: str,
) -> None:
    engine = make_speculating(proposer, 8)
    cut_short = 0
    for end in range(1, 12):
        stop = plain[1][end - 1]
        first = plain[1].index(stop) + 1
        for params, expected, reason in [
            (replace(GREEDY, max_tokens=end), plain[1][:end], "length"),
            (replace(GREEDY, stop_token_ids=(stop,)), plain[1][:first], "stop"),
        ]:
            before = engine.stats.num_accepted_tokens
            outputs = run(engine, [repeating[1]], params)
            assert (tokens(outputs)[0], outputs["0"][-1].finish_reason) == (expected, reason)
            cut_short += reason == "stop" and engine.stats.num_accepted_tokens > before
    assert cut_short > 0


def test_every_end_inside_an_ngram_draft(make_tiny_llama: Callable[..., Path], run: Run) -> None:
    """With weights near 0 a random model repeats itself."""
    model = load_model(make_tiny_llama(initializer_range=0.02), dtype="float32")
    results, accepted = [], []
    for speculation in (None, SpeculationConfig("ngram", 8, adaptive=False)):
        config = EngineConfig(block_size=4, num_blocks=64, speculation=speculation)
        engine = Engine(model, config, eos_token_ids=(128,))
        [full] = tokens(run(engine, [[5, 17, 99, 23, 41]], GREEDY))
        each = [replace(GREEDY, max_tokens=n) for n in range(1, 24)]
        each += [replace(GREEDY, stop_token_ids=(token,)) for token in full]
        outputs = run(engine, [[5, 17, 99, 23, 41]] * len(each), each)
        results.append((tokens(outputs), [outs[-1].finish_reason for outs in outputs.values()]))
        accepted.append(engine.stats.num_accepted_tokens)
    assert results[0] == results[1]
    assert accepted[0] == 0
    assert accepted[1] > 50


def test_eos_inside_a_draft_and_min_tokens(
    tiny_model: Decoder, tiny_checkpoint: Path, run: Run, repeating: list[list[int]]
) -> None:
    """With nearly all tokens at an end, only `min_tokens` keeps a request going."""
    ends = tuple(range(3, 128))
    outputs = []
    for speculation in (None, SpeculationConfig(f"draft:{tiny_checkpoint}", 5, adaptive=False)):
        config = EngineConfig(block_size=4, num_blocks=64, speculation=speculation)
        engine = Engine(tiny_model, config, eos_token_ids=ends)
        outputs.append(run(engine, [repeating[1]], SamplingParams(max_tokens=30, min_tokens=8)))
    assert tokens(outputs[0]) == tokens(outputs[1])
    assert outputs[0]["0"][-1].finish_reason == outputs[1]["0"][-1].finish_reason == "stop"
    assert engine.stats.num_accepted_tokens >= 6
    assert len(outputs[1]["0"]) <= 4


def test_windows_are_kept_and_freed_blocks_are_never_needed_again(
    windowed_model: Decoder, run: Run, repeating: list[list[int]]
) -> None:
    results = []
    for proposer in (None, "layers:1", "self-quantized:8"):
        speculation = proposer and SpeculationConfig(proposer, 5, adaptive=False, min_ngram=1)
        config = EngineConfig(block_size=4, num_blocks=256, speculation=speculation or None)
        engine = Engine(windowed_model, config)
        results.append(tokens(run(engine, repeating, GREEDY)))
        assert engine.stats.num_freed_window_blocks > 0
        assert (engine.stats.num_accepted_tokens > 0) == (proposer is not None)
    assert results[0] == results[1] == results[2]


@pytest.mark.parametrize("num_steps", range(6))
def test_abort_at_every_state_frees_everything(
    make_speculating: MakeEngine,
    repeating: list[list[int]],
    plain: list[list[int]],
    num_steps: int,
) -> None:
    engine = make_speculating("self-quantized:8", 4, num_blocks=60, max_num_batched_tokens=40)
    for index, prompt in enumerate(repeating):
        engine.add_request(str(index), prompt, GREEDY)
    generated: list[int] = []
    for _ in range(num_steps):
        generated += [t for out in engine.step() if out.request_id == "2" for t in out.token_ids]
    for index in (0, 1, 3, 4, 5):
        engine.abort(str(index))
        engine.scheduler.check_invariants()
    while engine.has_unfinished():
        generated += [t for out in engine.step() for t in out.token_ids]
    assert generated == plain[2]
    assert engine.block_pool.num_used_blocks == 0
    assert speculator(engine).proposer.blocks.num_used_blocks == 0


SAMPLED = [
    replace(GREEDY, temperature=temperature, seed=seed, top_k=top_k, top_p=top_p)
    for seed, (temperature, top_k, top_p) in enumerate(
        [
            (1.0, None, 1.0),
            (0.7, 20, 1.0),
            (1.2, None, 0.9),
            (1.0, 50, 0.8),
            (0, None, 1),
            (2, 5, 1),
        ]
    )
]


@pytest.mark.parametrize(("proposer", "sampling"), [("ngram", "rejection"), ("draft", "shared")])
def test_a_seed_gives_the_same_tokens_with_guesses_and_without(
    make_engine: MakeEngine,
    make_speculating: MakeEngine,
    run: Run,
    repeating: list[list[int]],
    proposer: str,
    sampling: str,
) -> None:
    expected = tokens(run(make_engine(), repeating, SAMPLED))
    for k, limits in [(1, {}), (5, {}), (5, {"num_blocks": 40, "max_num_batched_tokens": 30})]:
        engine = make_speculating(proposer, k, sampling=sampling, **limits)
        assert tokens(run(engine, repeating, SAMPLED)) == expected
        assert engine.stats.num_accepted_tokens > 0


def test_a_draft_equal_to_the_model_is_always_taken_when_sampling(
    make_speculating: MakeEngine, run: Run, repeating: list[list[int]]
) -> None:
    engine = make_speculating("draft", 5)
    run(engine, repeating, SAMPLED)
    assert engine.stats.acceptance_rate > 0.995  # rounding of another batch shape


@pytest.mark.parametrize("proposer", ["none", "ngram", "draft", "layers:1"])
def test_the_distribution_is_unchanged(
    make_tiny_llama: Callable[..., Path], tmp_path: Path, proposer: str
) -> None:
    """All continuations of three tokens of one prompt, by a G-test, with a vocabulary of five."""
    small = {"vocab_size": 5, "hidden_size": 32, "bos_token_id": 0, "eos_token_id": 1}
    model = load_model(make_tiny_llama(**small, initializer_range=0.3), dtype="float32")
    other = make_tiny_llama(**small, seed=5, initializer_range=0.3)
    name = proposer.replace("draft", f"draft:{other}")
    speculation = None
    if proposer != "none":
        speculation = SpeculationConfig(name, 2, adaptive=False, min_ngram=1)
    config = EngineConfig(
        block_size=4,
        num_blocks=1024,
        max_num_seqs=256,
        max_num_batched_tokens=2048,
        speculation=speculation,
    )
    engine = Engine(model, config)
    num_requests, prompt = 3000, [2, 3, 2, 4, 2, 3]
    params = SamplingParams(max_tokens=4, temperature=0.8, top_p=0.95, ignore_eos=True)
    for seed in range(num_requests):
        engine.add_request(str(seed), prompt, replace(params, seed=seed))
    texts: dict[str, tuple[int, ...]] = {}
    while engine.has_unfinished():
        for out in engine.step():
            texts[out.request_id] = texts.get(out.request_id, ()) + out.token_ids
    counts = Counter(text[:3] for text in texts.values())
    expected = exact_distribution(model, prompt, params, 3)
    assert set(counts) <= set(expected)
    common = [text for text in expected if expected[text] * num_requests >= 5]
    seen = [counts[text] for text in common]
    wanted = [expected[text] * num_requests for text in common]
    seen.append(num_requests - sum(seen))
    wanted.append(num_requests - sum(wanted))
    assert stats.power_divergence(seen, wanted, lambda_="log-likelihood").pvalue > 1e-3
    if proposer != "none":
        assert 0.02 < engine.stats.acceptance_rate < 0.98


def exact_distribution(
    model: Decoder, prompt: list[int], params: SamplingParams, length: int
) -> dict[tuple[int, ...], float]:
    from llmopt.layers.sampler import SamplingRow, distribution
    from llmopt_kernels.paged_attention import AttentionMetadata

    row = SamplingRow(params.temperature, params.top_k, params.top_p, 0, 0)
    chances = {(): 1.0}
    for _ in range(length):
        grown = {}
        for text, chance in chances.items():
            known = [*prompt, *text]
            with torch.inference_mode():
                hidden = model.forward(
                    torch.tensor(known),
                    torch.arange(len(known)),
                    AttentionMetadata.dense([len(known)]),
                )
                probs = distribution(model.compute_logits(hidden[-1:]), [row])[0].tolist()
            grown |= {(*text, t): chance * p for t, p in enumerate(probs) if p > 0}
        chances = grown
    return chances


@pytest.mark.parametrize("proposer", ["ngram", "layers:1"])
def test_a_synthetic_acceptance_is_met(
    tiny_model: Decoder, run: Run, repeating: list[list[int]], proposer: str
) -> None:
    speculation = SpeculationConfig(proposer, 3, adaptive=False, synthetic_acceptance=0.6)
    engine = Engine(tiny_model, EngineConfig(block_size=4, num_blocks=512, speculation=speculation))
    each = [replace(GREEDY, max_tokens=100, seed=seed) for seed in range(len(repeating))]
    outputs = run(engine, repeating, each)
    assert {len(ids) for ids in tokens(outputs)} == {100}
    assert speculator(engine).stats.tokens_per_step == pytest.approx(
        1 + 0.6 + 0.6**2 + 0.6**3, rel=0.08
    )


def test_another_vocabulary_is_refused_in_a_sentence(
    tiny_model: Decoder, make_tiny_llama: Callable[..., Path]
) -> None:
    path = make_tiny_llama(vocab_size=2000)
    config = EngineConfig(num_blocks=8, speculation=SpeculationConfig(f"draft:{path}"))
    with pytest.raises(UsageError, match=r"knows 128 tokens and the draft model .* knows 2000"):
        Engine(tiny_model, config)


def test_memory_is_shared_so_that_both_caches_hold_as_many_tokens(
    tiny_model: Decoder,
) -> None:
    settings: dict[str, Any] = {"block_size": 4, "kv_memory_bytes": 3 * 2**16, "max_num_seqs": 64}
    alone = Engine(tiny_model, EngineConfig(**settings))
    engine = Engine(tiny_model, EngineConfig(**settings, speculation=SpeculationConfig("layers:1")))
    draft_blocks = speculator(engine).proposer.blocks.groups[0].pool.num_blocks
    assert engine.block_pool.num_blocks == draft_blocks  # of one layer, against two
    assert engine.block_pool.num_blocks == alone.block_pool.num_blocks * 2 // 3
