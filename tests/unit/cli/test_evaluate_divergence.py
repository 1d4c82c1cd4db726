"""The same model in llmopt's runtime and in others, through the command's own functions."""

import io
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from llmopt.cli.evaluate_divergence import measure_alone, measure_divergence
from llmopt.cli.evaluate_models import EvaluationModels
from llmopt.cli.evaluate_options import Evaluation
from llmopt.cli.progress import StageProgress
from llmopt.errors import UsageError


@pytest.fixture(scope="module")
def models(
    make_tiny_llama: Callable[..., Path], byte_level_tokenizer: Callable[..., Any]
) -> tuple[Path, Path]:
    """Two random models of one shape with one tokenizer."""
    from tokenizers import pre_tokenizers

    paths = [make_tiny_llama(vocab_size=608, seed=seed) for seed in (0, 1)]
    for path in paths:
        tokenizer = byte_level_tokenizer(pre_tokenizers.ByteLevel(add_prefix_space=False))
        tokenizer.save_pretrained(path)
    return paths[0], paths[1]


@pytest.fixture
def asked(
    plain_evaluation: Evaluation,
    models: tuple[Path, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Evaluation:
    monkeypatch.setenv("LLMOPT_CACHE", str(tmp_path / "cache"))
    text = tmp_path / "text.txt"
    text.write_text("The quick brown fox jumps over the lazy dog. " * 150)
    return replace(
        plain_evaluation,
        model=str(models[1]),
        base=str(models[0]),
        text=str(text),
        window=32,
        num_windows="8",
        dtype="float32",
    )


def opened(asked: Evaluation) -> tuple[EvaluationModels, StageProgress]:
    progress = StageProgress(Console(file=io.StringIO()))
    return EvaluationModels(asked, progress), progress


def test_the_same_model_in_transformers_gives_the_same_record(asked) -> None:
    own = measure_divergence(asked, *opened(asked))
    other = replace(asked, backend="transformers")
    theirs = measure_divergence(other, *opened(other))
    assert (own.source, theirs.source) == ("llmopt", "transformers")
    assert own.verdict.label == theirs.verdict.label != "indistinguishable"
    assert theirs.kld_mean == pytest.approx(own.kld_mean, rel=1e-3)
    assert theirs.ppl == pytest.approx(own.ppl, rel=1e-4)
    assert theirs.noise == own.noise
    assert own.base_cache_error is not None
    assert theirs.base_cache_error == pytest.approx(own.base_cache_error)


def test_without_a_base_there_is_the_perplexity_alone(asked) -> None:
    compared = measure_divergence(asked, *opened(asked))
    alone = replace(asked, base=None)
    assert measure_divergence(alone, *opened(alone)) is None
    assert measure_alone(asked, *opened(asked)) is None
    for backend in ("llmopt", "transformers"):
        here = replace(alone, backend=backend)
        record = measure_alone(here, *opened(here))
        assert record.perplexity.ppl == pytest.approx(compared.ppl, rel=1e-4)


def test_elsewhere_the_noise_floor_is_of_the_windows_before_an_early_stop(asked) -> None:
    whole = replace(asked, num_windows="all", cache=False)
    stopping = replace(whole, backend="transformers", until_ci="0.9")
    record = measure_divergence(stopping, *opened(stopping))
    own = measure_divergence(replace(stopping, backend="llmopt"), *opened(whole))
    assert record.base_cache_error is None
    assert record.num_windows == own.num_windows
    assert record.noise == own.noise
    assert record.noise != measure_divergence(whole, *opened(whole)).noise


def test_the_activations_are_the_models_and_not_the_bases(asked, monkeypatch) -> None:
    rounded = replace(asked, dtype="bfloat16", base_dtype="bfloat16", activations="int16")
    models, _ = opened(rounded)
    loaded = []
    monkeypatch.setattr(models._loaded, "get", lambda *arguments: loaded.append(arguments))
    models.target()
    models.base()
    assert [dtype_and_activations for _, *dtype_and_activations in loaded] == [
        ["bfloat16", "int16"],
        ["bfloat16", "bf16"],
    ]
    wrong = replace(rounded, dtype="float32")
    with pytest.raises(UsageError, match="int16 were asked for, and float32 on cpu"):
        measure_divergence(wrong, *opened(wrong))


def test_nothing_is_compared_unless_asked_for(asked) -> None:
    without = replace(asked, divergence=False)
    assert measure_divergence(without, *opened(without)) is None
