"""lm-evaluation-harness itself on local tasks: the same answers as its own model, and replay."""

import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from llmopt.errors import UsageError
from llmopt.models.loader import load_model
from llmopt.models.tokenizer import load_tokenizer
from llmopt.quality.tasks.harness import compare_harness, run_harness
from llmopt.quality.tasks.report import compare_tasks
from llmopt.quality.tasks.requests import read_requests
from llmopt.quality.tasks.score import TaskModel

pytest.importorskip("lm_eval", reason="lm-evaluation-harness is an optional part")
pytestmark = pytest.mark.filterwarnings("ignore")  # the library and its dependencies warn

WORDS = ("the", "water", "of", "a", "house", "that", "was", "old", "and", "he", "went", "to", "his")
TEXTS = [
    ("The water of the", " sea"),
    ("The water of the ", "old house was his"),
    ("", "He went to the house"),
    ("One.\n\n", "Two"),
    ("He " * 150, "went to the house"),  # longer than the model reads
    ("It was", " a"),
    ("It was", " an"),
]
CHOICE_TASK = """
task: local_choice
dataset_path: json
dataset_kwargs: {{data_files: {{validation: {file}}}}}
validation_split: validation
output_type: multiple_choice
doc_to_text: "{{{{question}}}}"
doc_to_choice: choices
doc_to_target: label
metric_list: [{{metric: acc}}, {{metric: acc_norm}}]
"""
TARGET_TASK = """
task: local_target
dataset_path: json
dataset_kwargs: {{data_files: {{validation: {file}}}}}
validation_split: validation
output_type: loglikelihood
doc_to_text: "{{{{question}}}}"
doc_to_target: " {{{{choices[label]}}}}"
metric_list: [{{metric: perplexity}}, {{metric: acc}}]
"""
GENERATE_TASK = """
task: local_generate
dataset_path: json
dataset_kwargs: {{data_files: {{validation: {file}}}}}
validation_split: validation
output_type: generate_until
doc_to_text: "{{{{question}}}}"
doc_to_target: "{{{{choices[label]}}}}"
generation_kwargs: {{until: ["."], max_gen_toks: 8}}
metric_list: [{{metric: exact_match}}]
"""
PERPLEXITY_TASK = """
task: local_perplexity
dataset_path: json
dataset_kwargs: {{data_files: {{validation: {file}}}}}
validation_split: validation
output_type: loglikelihood_rolling
doc_to_text: ""
doc_to_target: "{{{{question}}}}"
metric_list: [{{metric: word_perplexity}}]
"""


@dataclass(frozen=True)
class Instance:
    args: tuple[Any, ...]


@pytest.fixture(autouse=True)
def _offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_DATASETS_OFFLINE", "1")
    monkeypatch.setenv("TQDM_DISABLE", "1")


@pytest.fixture(scope="module")
def model_dir(make_tiny_llama, byte_level_tokenizer) -> Callable[[int], Path]:
    from tokenizers import pre_tokenizers

    def make(seed: int) -> Path:
        path = make_tiny_llama(seed=seed, vocab_size=600, max_position_embeddings=96)
        splitter = pre_tokenizers.ByteLevel(add_prefix_space=False)
        byte_level_tokenizer(splitter, bos=seed == 1).save_pretrained(path)
        return path

    return make


def as_task_model(path: Path, name: str = "tiny") -> TaskModel:
    return TaskModel(load_model(path, dtype="float32"), load_tokenizer(path), name)


@pytest.fixture
def tasks_dir(tmp_path: Path) -> Path:
    rows = []
    for index in range(24):
        words = [WORDS[(index * step + step) % len(WORDS)] for step in range(1, 7)]
        rows.append(
            {"question": " ".join(words[:3]).capitalize(), "choices": words[3:], "label": index % 3}
        )
    file = tmp_path / "items.jsonl"
    file.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    for index, task in enumerate([CHOICE_TASK, TARGET_TASK, GENERATE_TASK, PERPLEXITY_TASK]):
        (tmp_path / f"task{index}.yaml").write_text(task.format(file=file), encoding="utf-8")
    return tmp_path


@pytest.mark.parametrize("seed", [0, 1])  # without and with a BOS that the tokenizer puts
def test_equals_the_harness_own_model(model_dir, seed):
    pytest.importorskip("accelerate", reason="the harness' own model needs accelerate")
    pytest.importorskip("peft", reason="the harness' own model needs peft")
    from lm_eval.models.huggingface import HFLM

    from llmopt.quality.tasks.harness_lm import LlmoptLM

    path = model_dir(seed)
    theirs = HFLM(str(path), device="cpu", dtype="float32", batch_size=1)
    ours = LlmoptLM(as_task_model(path))
    requests = [Instance(text) for text in TEXTS]
    expected, results = theirs.loglikelihood(requests), ours.loglikelihood(requests)
    assert [r[1] for r in results] == [e[1] for e in expected]
    assert [r[0] for r in results] == pytest.approx([e[0] for e in expected], abs=1e-3)

    documents = [Instance(("He went to the old house. " * 30,)), Instance(("It was",))]
    expected_sums = theirs.loglikelihood_rolling(documents)
    assert ours.loglikelihood_rolling(documents) == pytest.approx(expected_sums, rel=1e-5)

    arguments = {"until": ["e"], "max_gen_toks": 12}
    prompts = [Instance((context or "A", dict(arguments))) for context, _ in TEXTS]
    assert ours.generate_until(prompts) == theirs.generate_until(prompts)


def test_per_item_results_of_three_kinds_of_tasks(model_dir, tasks_dir):
    task_model = as_task_model(model_dir(0))
    names = ["local_choice", "local_target", "local_generate"]
    scores = run_harness(task_model, names, limit=10, include_path=tasks_dir)
    assert [(each.task, len(each.items)) for each in scores] == [(name, 10) for name in names]
    choice, target, generated = scores
    for item in choice.items:
        assert len(item.scores) == 3
        assert item.prediction == item.scores.index(max(item.scores))
        assert item.correct == (item.prediction == int(item.id) % 3)
    assert choice.accuracy_norm is not None
    assert all(len(item.scores) == 1 and item.prediction is None for item in target.items)
    assert all(item.scores == () for item in generated.items)


def test_two_models_are_paired(model_dir, tasks_dir):
    base, target = as_task_model(model_dir(0), "a"), as_task_model(model_dir(1), "b")
    report = compare_harness(target, base, ["local_choice"], include_path=tasks_dir)
    metric = report.tasks[0].metrics[0]
    assert (report.base_name, report.target_name, metric.num_items) == ("a", "b", 24)
    assert metric.num_lost + metric.num_gained > 0
    same = compare_harness(base, base, ["local_choice"], include_path=tasks_dir)
    assert same.tasks[0].metrics[0].judgement == "same"


def test_logged_samples_replay_to_the_same_answers(model_dir, tasks_dir, tmp_path):
    from lm_eval import simple_evaluate
    from lm_eval.loggers import EvaluationTracker
    from lm_eval.tasks import TaskManager

    from llmopt.quality.tasks.harness_lm import LlmoptLM

    task_model = as_task_model(model_dir(0))
    names = ["local_choice", "local_target"]
    tracker = EvaluationTracker(output_path=str(tmp_path / "out"))
    results = simple_evaluate(
        model=LlmoptLM(task_model),
        tasks=names,
        bootstrap_iters=0,
        task_manager=TaskManager(include_path=str(tasks_dir)),
        evaluation_tracker=tracker,
    )
    samples = results.pop("samples")
    tracker.save_results_aggregated(results=results, samples=samples)
    for name in names:
        tracker.save_results_samples(task_name=name, samples=samples[name])
    requests = read_requests(sorted((tmp_path / "out").rglob("samples_*.jsonl")))
    assert list(requests) == names
    direct = compare_harness(task_model, task_model, names, include_path=tasks_dir)
    replay = compare_tasks(task_model, task_model, requests)
    for there, here in zip(direct.tasks, replay.tasks, strict=True):
        for a, b in zip(there.items, here.items, strict=True):
            assert (a.base.id, a.base.correct) == (b.base.id, b.base.correct)
            assert a.base.correct_norm == b.base.correct_norm
            assert a.base.scores == pytest.approx(b.base.scores, abs=1e-4)
    assert replay.tasks[1].perplexity is not None
    assert replay.tasks[1].perplexity.base == pytest.approx(
        results["results"]["local_target"]["perplexity,none"], rel=1e-4
    )
    assert math.isfinite(replay.tasks[1].perplexity.base)


def test_tasks_that_cannot_be_run(model_dir, tasks_dir):
    task_model = as_task_model(model_dir(0))
    for name, message in [
        ("absent_task", "'absent_task' cannot be loaded"),
        ("local_perplexity", "local_perplexity has no right and wrong per item"),
    ]:
        with pytest.raises(UsageError, match=message):
            run_harness(task_model, [name], include_path=tasks_dir)
