"""Verdicts on real output: a model against itself, in 8 bits, and in 2 bits without care."""

from pathlib import Path

import pytest

from llmopt.bench.observer import SilentObserver
from llmopt.bench.sweep import run_recipe
from llmopt.recipe.schema import Base, Quality, Recipe, Target
from llmopt.results.schema import QualityRecord
from llmopt.results.store import read_results

pytestmark = pytest.mark.real_model

NEAR_NOISE = 5.0  # times the noise, at most, of what counts as near it


@pytest.fixture(scope="module")
def quality(
    default_model: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, QualityRecord]:
    """What a sweep says of each target, by name."""
    model = str(default_model)
    recipe = Recipe(
        name="verdicts",
        base=Base(model, "float32"),
        targets=(
            Target("same", model, "float32"),
            Target("bf16", model, "bfloat16"),
            Target("8-bit", model, "float32", "gguf-q8_0"),
            Target("2-bit", model, "float32", "rtn-w2g64"),
        ),
        quality=Quality(window=256, num_windows=8),
    )
    out = tmp_path_factory.mktemp("verdicts")
    paths = run_recipe(recipe, out / "results", out / "checkpoints", SilentObserver())
    results, errors = read_results(paths)
    assert errors == []
    return {result.target: result.quality for result in results if result.quality is not None}


def test_a_model_against_itself_is_indistinguishable(quality):
    record = quality["same"]
    assert record.kld_mean == record.kld_max == 0
    assert record.top1_agreement == 1
    assert record.ppl_ratio == 1
    assert record.verdict.label == "indistinguishable"
    assert record.verdict.times_noise == 0


def test_eight_bits_are_at_or_near_the_noise_floor(quality):
    record = quality["8-bit"]
    assert record.noise.scheme == "bf16"
    assert 1e-4 < record.noise.kld_mean == pytest.approx(quality["bf16"].kld_mean)
    assert quality["bf16"].verdict.label == "indistinguishable"
    assert 0 < record.verdict.times_noise_ci[1] < NEAR_NOISE
    assert record.ppl_ratio_ci[0] < 1.01


def test_two_bits_by_plain_rounding_are_worse(quality):
    record = quality["2-bit"]
    assert record.verdict.label == "worse"
    assert record.verdict.times_noise_ci[0] > 100
    assert record.ppl_ratio_ci[0] > 2
