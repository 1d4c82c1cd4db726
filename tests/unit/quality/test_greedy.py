import json
from dataclasses import replace

import pytest
import torch
from tokenizers import pre_tokenizers

from llmopt.engine.engine import Engine, EngineConfig
from llmopt.engine.sampling_params import SamplingParams
from llmopt.errors import ModelError, UsageError
from llmopt.models.loader import load_model
from llmopt.models.tokenizer import Tokenizer
from llmopt.quality.greedy import measure_greedy
from llmopt.quality.greedy_prompts import GreedyOptions, load_prompts
from llmopt.quality.greedy_report import GreedyReport
from llmopt.quality.source import ModelLogits
from llmopt.quality.windows import Window
from llmopt.results.codec import from_json, to_json

NEW_TOKENS = 24
PROMPTS = [
    "The ship had sailed",
    "It rained",
    "Nobody waved to the captain, and",
    "a",
    "In the morning the harbour was empty",
    "What did he know?",
]


@pytest.fixture(scope="module")
def tokenizer(byte_level_tokenizer):
    inner = byte_level_tokenizer(pre_tokenizers.ByteLevel(add_prefix_space=False))
    return Tokenizer(inner, [0])


@pytest.fixture(scope="module")
def checkpoint(make_tiny_llama):
    return make_tiny_llama(vocab_size=600, max_position_embeddings=128)


@pytest.fixture(scope="module")
def base(checkpoint):
    return load_model(checkpoint, dtype="float32")


@pytest.fixture(scope="module")
def noise(checkpoint):
    return load_model(checkpoint, dtype="bfloat16")


@pytest.fixture
def damaged(checkpoint):
    """The base with noise on its weights: some outputs differ from the base's, some do not."""

    def make(scale):
        target = load_model(checkpoint, dtype="float32")
        generator = torch.Generator().manual_seed(4)
        for block in target.blocks:
            weight = block.mlp.down.weight
            weight += scale * weight.std() * torch.randn(weight.shape, generator=generator)
        return target

    return make


@pytest.fixture
def options(tmp_path):
    path = tmp_path / "prompts.txt"
    path.write_text("\n\n".join(PROMPTS), encoding="utf-8")
    return GreedyOptions(prompts=path, max_new_tokens=NEW_TOKENS, num_resamples=500)


def generate(model, prompts, eos_token_ids, max_tokens=NEW_TOKENS):
    """Greedy outputs, one prompt at a time."""
    outputs = []
    for prompt in prompts:
        engine = Engine(model, EngineConfig(num_blocks=64), eos_token_ids=eos_token_ids)
        engine.add_request("0", prompt, SamplingParams(max_tokens=max_tokens))
        output = []
        while engine.has_unfinished():
            for step in engine.step():
                output.extend(step.token_ids)
        outputs.append(output)
    return outputs


def first_difference(ours, theirs):
    return next((i for i, (a, b) in enumerate(zip(ours, theirs, strict=False)) if a != b), None)


@pytest.mark.parametrize("scale", [0.05, 0.2, 1.0])
def test_the_first_difference_is_that_of_a_greedy_run_of_the_target(
    base, damaged, tokenizer, options, scale
):
    target = damaged(scale)
    prompts = [tokenizer.encode(prompt) for prompt in PROMPTS]
    ours = generate(base, prompts, tokenizer.eos_token_ids)
    theirs = generate(target, prompts, tokenizer.eos_token_ids)
    expected = [first_difference(a, b) for a, b in zip(ours, theirs, strict=True)]
    report = measure_greedy(target, base, tokenizer, options)
    found = [prompt.difference for prompt in report.target.prompts]
    assert [one and one.position for one in found] == expected
    assert any(position is not None for position in expected)
    for one, a, b, prompt in zip(found, ours, theirs, report.target.prompts, strict=True):
        assert prompt.num_tokens == len(a)
        if one is not None:
            tokens = (a[one.position], b[one.position])
            assert tokens[0] != tokens[1]
            if all(tokenizer.decode([token]).isascii() for token in tokens):
                assert (one.base_token, one.token) == tuple(tokenizer.decode([t]) for t in tokens)


def test_an_output_that_ends_early_is_compared_to_its_end(base, damaged, tokenizer, options):
    prompts = [tokenizer.encode(prompt) for prompt in PROMPTS]
    free = generate(base, prompts, ())
    stop = free[0][3]  # this token now ends an answer
    ended = Tokenizer(tokenizer.backend, [stop])
    report = measure_greedy(base, base, ended, options)
    lengths = [out.index(stop) + 1 if stop in out else NEW_TOKENS for out in free]
    assert [prompt.num_tokens for prompt in report.target.prompts] == lengths
    assert lengths[0] <= 4
    assert report.num_tokens == sum(lengths)


def test_a_model_against_itself_never_differs(base, tokenizer, options):
    run = measure_greedy(base, base, tokenizer, options).target
    assert [prompt.difference for prompt in run.prompts] == [None] * len(PROMPTS)
    assert (run.diverged, run.flips, run.median_position) == (0, 0, None)
    low, high = run.diverged_ci
    assert low == 0
    assert 0.3 < high < 0.5  # 0 of 6: Wilson's upper end is 39 %


def test_gaps_are_the_bases_own(base, damaged, tokenizer, options):
    target = damaged(0.5)
    report = measure_greedy(target, base, tokenizer, options)
    prompts = [tokenizer.encode(prompt) for prompt in PROMPTS]
    outputs = generate(base, prompts, tokenizer.eos_token_ids)
    checked = 0
    for prompt, ids, output in zip(report.target.prompts, prompts, outputs, strict=True):
        if prompt.difference is None:
            continue
        window = Window(torch.tensor(ids + output), len(output), 0)
        row = prompt.difference.position
        logits = [
            torch.cat(list(ModelLogits(model, name="", scheme="").chunks(window)))[row].double()
            for model in (base, target)
        ]
        log_probs = logits[0].log_softmax(0)
        top = log_probs.topk(2).values
        assert prompt.difference.gap_nats == pytest.approx(float(top[0] - top[1]))
        assert prompt.difference.gap == pytest.approx(float(top[0].exp() - top[1].exp()))
        chosen = float(top[0] - log_probs[logits[1].argmax()])
        assert prompt.difference.chosen_gap_nats == pytest.approx(chosen)
        assert prompt.difference.near_tie is None
        checked += 1
    assert checked >= 3


def test_near_ties_are_told_by_how_far_rounding_moves_gaps(
    base, noise, damaged, tokenizer, options
):
    report = measure_greedy(damaged(1.0), base, tokenizer, options, noise=noise)
    moved = []
    prompts = [tokenizer.encode(prompt) for prompt in PROMPTS]
    for ids, output in zip(prompts, generate(base, prompts, tokenizer.eos_token_ids), strict=True):
        window = Window(torch.tensor(ids + output), len(output), 0)
        exact, rounded = (
            torch.cat(list(ModelLogits(model, name="", scheme="").chunks(window))).double()
            for model in (base, noise)
        )
        pair = exact.topk(2, dim=1).indices
        gaps = [
            logits.gather(1, pair) @ torch.tensor([1.0, -1.0]).double()
            for logits in (exact, rounded)
        ]
        moved.append((gaps[1] - gaps[0]).abs())
    expected = float(torch.quantile(torch.cat(moved), 0.99))
    assert report.near_tie_nats == pytest.approx(expected, rel=1e-3)
    assert report.noise is not None
    for run in (report.target, report.noise):
        found = [prompt.difference for prompt in run.prompts if prompt.difference is not None]
        ties = [one.chosen_gap_nats <= report.near_tie_nats for one in found]
        assert [one.near_tie for one in found] == ties
        assert run.damaged == pytest.approx((len(ties) - sum(ties)) / len(PROMPTS))
    assert report.target.near_ties is not None
    assert report.target.near_ties < 0.5
    assert report.target.damaged > 0.5
    assert report.noise.damaged == 0
    assert report.noise.flips_beyond_noise == 0 < report.target.flips_beyond_noise


@pytest.mark.parametrize("scale", [0.005, 0.2])
def test_shares_and_the_median_follow_from_the_prompts(base, damaged, tokenizer, options, scale):
    run = measure_greedy(damaged(scale), base, tokenizer, options).target
    positions = [p.difference.position for p in run.prompts if p.difference is not None]
    assert run.diverged == len(positions) / len(PROMPTS)
    assert run.diverged_ci[0] < run.diverged <= run.diverged_ci[1]
    never = [10**6] * (len(PROMPTS) - len(positions))
    median = sorted(positions + never)[2]
    assert run.median_position == (median if median < 10**6 else None)
    assert (run.median_position is None) == (scale == 0.005)
    assert run.flips_ci[0] <= run.flips <= run.flips_ci[1]
    assert run.flips >= len(positions) / (len(PROMPTS) * NEW_TOKENS)


def test_the_report_survives_json_and_progress_ends_at_the_whole(
    base, noise, damaged, tokenizer, options
):
    heard = []
    report = measure_greedy(
        damaged(0.5), base, tokenizer, options, lambda *now: heard.append(now), noise=noise
    )
    assert from_json(GreedyReport, json.loads(json.dumps(to_json(report))), "greedy") == report
    done = [now for now, _ in heard]
    assert done == sorted(done)
    assert heard[-1] == (2 * len(PROMPTS) * NEW_TOKENS,) * 2


def test_what_cannot_be_compared_is_refused(base, tokenizer, options, make_tiny_llama):
    other = load_model(make_tiny_llama(vocab_size=610))
    with pytest.raises(UsageError, match="vocabularies of 600 and 610"):
        measure_greedy(other, base, tokenizer, options)
    with pytest.raises(UsageError, match="at most 128 tokens, and the longest prompt has"):
        measure_greedy(base, base, tokenizer, replace(options, max_new_tokens=125))


def test_broken_weights_are_an_error(base, damaged, tokenizer, options):
    target = damaged(0.1)
    target.blocks[0].mlp.down.weight[0, 0] = torch.nan
    with pytest.raises(ModelError, match="NaN or infinite"):
        measure_greedy(target, base, tokenizer, options)


def test_without_a_file_prompts_are_pieces_of_the_text(tokenizer):
    source, prompts = load_prompts(tokenizer, GreedyOptions(num_prompts=5, prompt_tokens=16))
    assert source == "5 pieces of 16 tokens of bundled"
    assert [len(prompt) for prompt in prompts] == [16] * 5
    assert len({tuple(prompt) for prompt in prompts}) == 5


def test_json_lines_are_strings_or_objects(tokenizer, tmp_path):
    path = tmp_path / "some.jsonl"
    path.write_text('{"prompt": "one\\ntwo", "id": 1}\n\n"three"\n"four"\n', encoding="utf-8")
    source, prompts = load_prompts(tokenizer, GreedyOptions(prompts=path, num_prompts=2))
    assert source == "the first 2 prompts of some.jsonl"
    assert [tokenizer.decode(prompt) for prompt in prompts] == ["one\ntwo", "three"]


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a.jsonl", b'"ok"\n{"text": "x"}\n', "line 2 of .*a.jsonl is no prompt"),
        ("a.jsonl", b'"ok"\n{"prompt"\n', "line 2 of"),
        ("a.txt", b"one prompt\n\n", "has 1 prompts"),
        ("a.txt", b"\xff\xfe\n", "not UTF-8"),
    ],
)
def test_a_file_without_prompts_is_refused(tokenizer, tmp_path, name, content, said):
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(UsageError, match=said):
        load_prompts(tokenizer, GreedyOptions(prompts=path))


def test_a_missing_file_is_refused(tokenizer, tmp_path):
    with pytest.raises(UsageError, match="cannot be read: No such file"):
        load_prompts(tokenizer, GreedyOptions(prompts=tmp_path / "none.txt"))


@pytest.mark.parametrize(
    "wrong",
    [
        {"num_prompts": 1},
        {"prompt_tokens": 1},
        {"max_new_tokens": 0},
        {"confidence": 1.0},
        {"num_resamples": 99},
    ],
)
def test_impossible_options_are_refused(wrong):
    with pytest.raises(UsageError, match=str(next(iter(wrong.values())))):
        GreedyOptions(**wrong)
