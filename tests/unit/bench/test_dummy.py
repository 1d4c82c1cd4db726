"""Targets of random weights: measured as others are, and never for their quality."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from llmopt.bench.dummy import ByteTokenizer, dummy_problems
from llmopt.bench.loaded import LoadedModels
from llmopt.bench.observer import SilentObserver
from llmopt.bench.quantization import quantization_problems
from llmopt.bench.sweep import run_recipe
from llmopt.recipe.engine import Activations, EngineSettings, Speculation
from llmopt.recipe.schema import Base, Load, Quality, QuantizeSpec, Recipe, Target
from llmopt.results.store import read_results

pytestmark = pytest.mark.usefixtures("known_ceilings")


@pytest.fixture
def config(tiny_model_path: Path, tmp_path: Path) -> str:
    """A config.json that nothing lies beside."""
    path = tmp_path / "config" / "config.json"
    path.parent.mkdir()
    shutil.copy(tiny_model_path / "config.json", path)
    return str(path)


def measure(recipe: Recipe, out: Path) -> dict[str, Any]:
    paths = run_recipe(recipe, out / "results", out / "work", SilentObserver())
    results, errors = read_results(paths)
    assert errors == []
    assert [result.error for result in results] == [None] * len(results)
    return {result.target: result for result in results}


def test_random_weights_are_measured_beside_real_ones(
    tiny_model_path, config, tmp_path, has_native
):
    real = str(tiny_model_path)
    recipe = Recipe(
        name="r",
        base=Base(real, "float32"),
        targets=(
            Target("random", f"dummy:{real}", "float32"),
            Target("random-w4", f"dummy:{config}", "bfloat16", "w4g32"),
            Target("bf16", real, "bfloat16"),
        ),
        loads=(Load(1, 3, 16, 4),),
        repeats=1,
        quality=Quality(window=32, num_windows=2, noise=False),
    )
    found = measure(recipe, tmp_path)
    base, random, random_w4, bf16 = (
        found[name] for name in ("fp32", "random", "random-w4", "bf16")
    )
    assert random.quality is random_w4.quality is None
    assert bf16.quality.kld_mean > 0
    assert [each.model.is_dummy for each in (base, random, random_w4, bf16)] == [0, 1, 1, 0]
    assert "random" in random.model.note
    # the same shape: all but the norms, 5 of 64
    assert base.model.num_parameters - random.model.num_parameters == 5 * 64
    assert random.model.weight_bytes == base.model.weight_bytes
    assert random_w4.model.scheme == "w4g32"
    numbers_per_group = 1 if has_native else 2  # scales, and torch's kernel wants offsets
    assert random_w4.model.linear_bits_per_weight == 4 + numbers_per_group * 16 / 32
    assert random.model.path_hash != base.model.path_hash != random_w4.model.path_hash
    assert random.summary.output_throughput > 0
    assert {r.num_output_tokens for r in random_w4.runs[0].requests} == {4}


def test_a_base_of_random_weights_leaves_quality_out(config, tmp_path):
    base = Base(f"dummy:{config}", "float32")
    quality = Quality(window=32, num_windows=2)
    recipe = Recipe("r", base, (), (Load(1, 2, 16, 4),), repeats=1, quality=quality)
    assert measure(recipe, tmp_path)["fp32"].quality is None


@pytest.mark.parametrize("acceptance", [0.0, 1.0])
def test_acceptance_is_what_was_asked_for(config, tmp_path, acceptance):
    speculation = Speculation("ngram", 3, adaptive=False, synthetic_acceptance=acceptance)
    engine = EngineSettings(speculation=speculation)
    base = Base(f"dummy:{config}", "float32", engine=engine)
    recipe = Recipe("r", base, (), (Load(1, 2, 16, 13),), repeats=1)
    (run,) = measure(recipe, tmp_path)["fp32"].runs
    drafted, taken = (run.step_stats[f"num_{kind}_tokens"] for kind in ("draft", "accepted"))
    assert drafted > 0
    assert taken == acceptance * drafted
    # 12 tokens behind the first: 4 of each step, or 1
    assert run.step_stats["num_decodes"] == 2 * (3 if acceptance else 12)


def test_a_models_own_tokenizer_reads_the_prompts_where_it_is_there(
    tiny_model_path, config, tmp_path, monkeypatch
):
    read: list[str] = []
    real = ByteTokenizer.encode

    def noting(self: Any, text: str, **rest: Any) -> list[int]:
        read.append(text)
        return real(self, text, **rest)

    monkeypatch.setattr(ByteTokenizer, "encode", noting)
    for model, num_read in ((str(tiny_model_path), 0), (config, 1)):
        recipe = Recipe("r", Base(f"dummy:{model}"), (), (Load(1, 1, 16, 2),), repeats=1)
        measure(recipe, tmp_path / str(num_read))
        assert len(read) == num_read


def test_bytes_are_tokens_of_the_vocabulary():
    assert ByteTokenizer(256).encode("Aé") == [65, 195, 169]
    assert max(ByteTokenizer(100).encode("Aé")) < 100


def test_a_model_is_made_once_for_each_scheme(config):
    models = LoadedModels.on("cpu")
    path = Path(config)
    plain = models.get_dummy(path, "float32", None)
    packed = models.get_dummy(path, "float32", "w4g32")
    assert models.get_dummy(path, "float32", None) is plain
    assert models.get_dummy(path, "float32", "w4g32") is packed is not plain
    exact = models.get_dummy(path, "float32", "w4g32", "bf16")
    assert models.get_dummy(path, "float32", "w4g32", "bf16") is exact is not packed


def test_random_weights_meet_the_activations_that_were_asked_for(config, tmp_path, has_native):
    def target(name: str, activations: Activations | None) -> Target:
        engine = None if activations is None else EngineSettings(activations=activations)
        return Target(name, f"dummy:{config}", "bfloat16", "w4g32", engine)

    targets = (target("auto", None), target("int16", "int16"), target("bf16", "bf16"))
    base = Base(f"dummy:{config}", "bfloat16", "full")
    recipe = Recipe("r", base, targets, (Load(1, 2, 16, 2),), repeats=1)
    found = measure(recipe, tmp_path)
    kernels = {name: set(found[name].model.kernels) for name in ("auto", "int16", "bf16")}
    if has_native:
        assert "native w4a8" in kernels["auto"]
        assert "native w4a16" in kernels["int16"]
    assert not any(kernel.startswith("native w4") for kernel in kernels["bf16"])
    settings = {name: each.backend.settings["activations"] for name, each in found.items()}
    assert settings == {"full": "auto", "auto": "auto", "int16": "int16", "bf16": "bf16"}


def test_what_there_is_no_kernel_for_is_refused():
    recipe = Recipe(
        "r",
        Base("dummy:x"),
        (
            Target("a", "dummy:x", quantize="w9"),
            Target("b", "dummy:x", quantize=QuantizeSpec("rtn", 4, 32)),
            Target("c", "dummy:x", quantize="w4g32"),
            Target("d", "m", quantize="rtn-w4g32"),
        ),
    )
    found = list(dummy_problems(recipe))
    assert [problem.path[1] for problem in found] == [0, 1]
    assert "no random weights of the scheme 'w9'" in found[0].message
    own = replace(recipe, targets=recipe.targets[2:3])
    assert list(quantization_problems(own)) == []


def test_the_same_random_weights_in_another_directory_have_one_hash(config, tmp_path):
    from llmopt.bench.dummy import dummy_hash

    other = tmp_path / "other.json"
    other.write_text(json.dumps(json.loads(Path(config).read_text())))
    target = Target("t", f"dummy:{config}")
    assert dummy_hash(target, Path(config)) == dummy_hash(target, other)
    assert dummy_hash(replace(target, quantize="w4g32"), other) != dummy_hash(target, other)
