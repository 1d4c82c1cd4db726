import json
from dataclasses import replace

import pytest
import torch
from tokenizers import pre_tokenizers

from llmopt.errors import ModelError, UsageError
from llmopt.models.loader import load_model
from llmopt.models.tokenizer import Tokenizer
from llmopt.quality.atlas import measure_atlas
from llmopt.quality.atlas_report import AtlasReport
from llmopt.quality.options import QualityOptions
from llmopt.quality.windows import EvaluationWindows, Window
from llmopt.results.codec import from_json, to_json

NUM_BLOCKS = 3
OPTIONS = QualityOptions(num_resamples=500)


@pytest.fixture(scope="module")
def tokenizer(byte_level_tokenizer):
    inner = byte_level_tokenizer(pre_tokenizers.ByteLevel(add_prefix_space=False))
    return Tokenizer(inner, [0])


@pytest.fixture(scope="module")
def checkpoint(make_tiny_llama):
    return make_tiny_llama(vocab_size=600, num_hidden_layers=NUM_BLOCKS, tie_word_embeddings=False)


@pytest.fixture
def load(checkpoint):
    """A fresh copy of the model, whose weights a test may change."""
    return lambda dtype="float32": load_model(checkpoint, dtype=dtype)


@pytest.fixture(scope="module")
def windows(tokenizer):
    generator = torch.Generator().manual_seed(5)
    cut = tuple(
        Window(torch.randint(2, 590, (n,), generator=generator), num_scored, num_bytes=100)
        for n, num_scored in ((30, 29), (40, 20), (35, 34))
    )
    return EvaluationWindows(cut, "sample.txt", "0" * 64, "windows", "some windows")


def damage(layer, scale=0.3):
    """Add noise to the weight of a dense layer."""
    generator = torch.Generator().manual_seed(9)
    layer.weight += (
        scale * layer.weight.std() * torch.randn(layer.weight.shape, generator=generator)
    )


def by_label(report):
    return {part.label: part for part in report.parts}


def test_a_model_against_itself_is_not_damaged_anywhere(load, windows, tokenizer):
    report = measure_atlas(load(), load(), windows, OPTIONS, tokenizer)
    assert [part.label for part in report.parts] == ["block 0", "block 1", "block 2"]
    assert all(part.kld_mean == 0 and part.kld_mean_ci == (0, 0) for part in report.parts)
    assert all(part.top1_agreement == 1 for part in report.parts)
    assert report.quality.kld_mean == 0
    assert report.worst_tokens == ()
    assert report.additivity is None


@pytest.mark.parametrize(
    ("place", "label", "half"),
    [
        (lambda model: model.blocks[1].mlp.down, "block 1", "block 1 MLP"),
        (lambda model: model.blocks[2].attention.output, "block 2", "block 2 attention"),
    ],
)
def test_damage_in_one_place_is_found_there_and_nowhere_else(
    load, windows, tokenizer, place, label, half
):
    target = load()
    damage(place(target))
    report = measure_atlas(target, load(), windows, OPTIONS, tokenizer, detail=True)
    damaged = {name: part.kld_mean for name, part in by_label(report).items() if part.kld_mean}
    assert set(damaged) == {label, half}
    assert damaged[label] == pytest.approx(report.quality.kld_mean, rel=1e-12)
    assert damaged[label] > 1e-4
    assert damaged[half] == damaged[label]
    assert report.additivity == pytest.approx(1, rel=1e-12)
    part = by_label(report)[label]
    assert part.kld_mean_ci == pytest.approx(report.quality.kld_mean_ci, rel=1e-12)
    assert part.top1_agreement == report.quality.top1_agreement < 1


@pytest.mark.parametrize(
    ("place", "label"),
    [
        (lambda model: model.lm_head, "head"),
        (lambda model: model.final_norm, "final norm"),
    ],
)
def test_damage_outside_the_blocks_is_a_row_of_its_own(load, windows, tokenizer, place, label):
    target = load()
    layer = place(target)
    layer.weight.mul_(torch.linspace(0.5, 1.5, layer.weight.shape[-1]))
    report = measure_atlas(target, load(), windows, OPTIONS, tokenizer)
    assert [part.label for part in report.parts if part.kld_mean > 0] == [label]
    assert by_label(report)[label].layer is None
    assert report.parts_kld_sum == pytest.approx(report.quality.kld_mean, rel=1e-12)


def test_a_damaged_embedding_is_a_row_of_its_own(load, windows, tokenizer):
    target = load()
    target.embedding += 0.1 * torch.randn(
        target.embedding.shape, generator=torch.Generator().manual_seed(1)
    )
    report = measure_atlas(target, load(), windows, OPTIONS, tokenizer)
    assert [part.label for part in report.parts if part.kld_mean > 0] == ["embedding"]
    assert report.parts[0].kld_mean == pytest.approx(report.quality.kld_mean, rel=1e-12)


def test_small_damage_in_all_blocks_adds_up(load, windows, tokenizer):
    target = load()
    for block in target.blocks:
        damage(block.mlp.down, scale=0.05)
    report = measure_atlas(target, load(), windows, OPTIONS, tokenizer, detail=True)
    whole = [part for part in report.parts if part.kind == "block"]
    assert list(report.whole_parts) == whole
    assert len(report.halves) == 2 * NUM_BLOCKS
    assert report.parts_kld_sum == pytest.approx(sum(part.kld_mean for part in whole))
    assert 0.5 < report.additivity < 2


def test_the_worst_tokens_are_the_largest_divergences(load, windows, tokenizer):
    target = load()
    damage(target.blocks[0].mlp.down)
    report = measure_atlas(target, load(), windows, OPTIONS, tokenizer, num_worst=4)
    klds = [token.kld for token in report.worst_tokens]
    assert len(klds) == 4
    assert klds == sorted(klds, reverse=True)
    assert klds[0] == report.quality.kld_max
    for token in report.worst_tokens:
        window = windows.windows[token.window]
        assert len(window.token_ids) - window.num_scored <= token.position < len(window.token_ids)


def test_the_report_keeps_what_was_measured_and_survives_json(load, windows, tokenizer):
    target = load()
    damage(target.blocks[0].mlp.down)
    report = measure_atlas(
        target, load(), windows, OPTIONS, tokenizer, detail=True, target_name="w4", base_name="b"
    )
    assert (report.target_name, report.quality.base_name) == ("w4", "b")
    assert report.quality.num_tokens == 29 + 20 + 34
    assert sum(bucket.num_tokens for bucket in report.quality.by_position) == 29 + 20 + 34
    assert sum(bucket.num_tokens for bucket in report.quality.by_confidence) == 29 + 20 + 34
    assert from_json(AtlasReport, json.loads(json.dumps(to_json(report))), "atlas") == report


def test_progress_goes_up_and_ends_at_the_whole(load, windows, tokenizer):
    heard = []
    measure_atlas(
        load(), load(), windows, OPTIONS, tokenizer, lambda *now: heard.append(now), detail=True
    )
    done = [now for now, _ in heard]
    assert done == sorted(set(done))
    assert heard[-1][0] == heard[-1][1]
    assert {total for _, total in heard} == {heard[-1][1]}
    assert len(heard) == 3 * (1 + 3 + 3 * NUM_BLOCKS)


def test_rounding_alone_is_small_and_everywhere(load, windows, tokenizer):
    report = measure_atlas(load("bfloat16"), load(), windows, OPTIONS, tokenizer)
    labels = [part.label for part in report.parts]
    assert labels[-1] == "head"
    assert all(0 < part.kld_mean < report.quality.kld_mean * 2 for part in report.parts)


def test_windows_that_cannot_be_measured_are_refused(load, windows, tokenizer):
    one = replace(windows, windows=windows.windows[:1])
    with pytest.raises(UsageError, match="one window"):
        measure_atlas(load(), load(), one, OPTIONS, tokenizer)
    long = Window(torch.zeros(514, dtype=torch.int64), 512, 1)
    with pytest.raises(UsageError, match="at most 512 tokens at once, and the windows need 513"):
        measure_atlas(load(), load(), replace(windows, windows=(long,) * 2), OPTIONS, tokenizer)


def test_a_model_of_other_depth_is_refused(load, windows, tokenizer, make_tiny_llama):
    target = load_model(make_tiny_llama(vocab_size=600, tie_word_embeddings=False))
    with pytest.raises(UsageError, match="num_layers 2 and its base 3"):
        measure_atlas(target, load(), windows, OPTIONS, tokenizer)


def test_broken_weights_are_an_error(load, windows, tokenizer):
    target = load()
    target.blocks[1].mlp.down.weight[0, 0] = torch.nan
    with pytest.raises(ModelError, match="NaN or infinite logits in window 1"):
        measure_atlas(target, load(), windows, OPTIONS, tokenizer)
