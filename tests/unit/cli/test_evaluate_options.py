from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import pytest
from typer.testing import CliRunner

from llmopt.cli import evaluate_command
from llmopt.cli.app import app
from llmopt.cli.evaluate import Activations
from llmopt.cli.evaluate_options import Evaluation, check, quality_options, runtime
from llmopt.errors import UsageError
from llmopt.layers.native_linear import WeightActivations
from llmopt.quality.options import QualityOptions


def refusal(asked: Evaluation) -> str | None:
    try:
        check(asked)
    except UsageError as error:
        return str(error)
    return None


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"base": None},
        {"base": None, "backend": "llama.cpp"},
        {"backend": "vllm:http://host:1"},
        {"divergence": False, "greedy": True},
        {"divergence": False, "requests": (Path("x.jsonl"),)},
        {"until_ci": "5%"},
        {"activations": "int8"},
        {"atlas": True, "activations": "bf16"},
        {"atlas": True, "activations": "int8", "dtype": "bfloat16"},
        {"atlas": True, "activations": "int8", "base_dtype": "bfloat16"},
    ],
)
def test_what_makes_sense_passes(
    plain_evaluation: Evaluation,
    changes: dict[str, Any],
) -> None:
    assert refusal(replace(plain_evaluation, **changes)) is None


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"divergence": False}, "there is nothing to measure"),
        ({"base": None, "tasks": "piqa", "greedy": True}, "--tasks, --greedy compares with a base"),
        ({"base": None, "atlas": True}, "--atlas compares with a base. Add --base"),
        (
            {"activations": "bf16", "backend": "transformers"},
            "--activations is about llmopt's own runtime, and the backend is transformers",
        ),
        (
            {"activations": "int8", "atlas": True},
            "--atlas runs both models in float32, which has no activations of int8",
        ),
        ({"backend": "llama.cpp", "atlas": True}, "--atlas needs the model in llmopt's own"),
        ({"base": None, "backend": "vllm:http://host:1"}, "does not give its tokenizer"),
        ({"base": None, "until_ci": "5%"}, "--until-ci is about the divergence"),
        ({"backend": "vllm"}, "the backend is 'vllm'. Use llmopt, transformers"),
        ({"backend": "llama.cpp:x"}, "the backend is 'llama.cpp:x'"),
        ({"backend": "sglang"}, "the backend is 'sglang'"),
    ],
)
def test_what_makes_no_sense_is_refused(
    plain_evaluation: Evaluation,
    changes: dict[str, Any],
    message: str,
) -> None:
    assert message in (refusal(replace(plain_evaluation, **changes)) or "")


def test_a_server_is_a_runtime_with_a_url() -> None:
    assert runtime("vllm:http://127.0.0.1:8000/v1") == ("vllm", "http://127.0.0.1:8000/v1")
    assert runtime("transformers") == ("transformers", None)


@pytest.mark.parametrize(
    ("num_windows", "until_ci", "expected"),
    [
        (None, None, (16, None)),
        ("all", None, (None, None)),
        ("40", None, (40, None)),
        (None, "5%", (None, 0.05)),
        ("40", " 2.5 % ", (40, 0.025)),
        ("all", "0.1", (None, 0.1)),
    ],
)
def test_windows_and_the_interval_to_stop_at(
    plain_evaluation: Evaluation,
    num_windows: str | None,
    until_ci: str | None,
    expected: tuple[int | None, float | None],
) -> None:
    options = quality_options(replace(plain_evaluation, num_windows=num_windows, until_ci=until_ci))
    assert (options.num_windows, options.until_ci) == expected


def test_without_options_they_are_the_defaults(plain_evaluation: Evaluation) -> None:
    assert quality_options(plain_evaluation) == QualityOptions()


@pytest.mark.parametrize("changes", [{"num_windows": "many"}, {"until_ci": "narrow"}])
def test_what_is_no_number_is_refused(
    plain_evaluation: Evaluation,
    changes: dict[str, Any],
) -> None:
    with pytest.raises(UsageError, match=r"is '(many|narrow)'"):
        quality_options(replace(plain_evaluation, **changes))


def test_names_of_tasks_are_parted_at_commas(plain_evaluation: Evaluation) -> None:
    assert replace(plain_evaluation, tasks="piqa, arc_easy,").task_names == ["piqa", "arc_easy"]
    assert not replace(plain_evaluation, tasks=" , ").has_tasks
    assert replace(plain_evaluation, requests=(Path("x.jsonl"),)).has_tasks


def test_activations_of_the_command_line(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Evaluation] = []
    monkeypatch.setattr(evaluate_command, "run", asked.append)
    for options in ([], ["--activations", "bf16"]):
        assert CliRunner().invoke(app, ["eval", "m", *options]).exit_code == 0
    assert [each.activations for each in asked] == ["auto", "bf16"]
    refused = CliRunner().invoke(app, ["eval", "m", "--activations", "int4"])
    assert refused.exit_code == 2
    assert tuple(each.value for each in Activations) == get_args(WeightActivations)
