"""Two models on the same items, as one report."""

import json
import math

import pytest

from llmopt.errors import UsageError
from llmopt.quality.tasks.report import build_report, compare_tasks
from llmopt.quality.tasks.requests import TaskRequest
from llmopt.quality.tasks.score import TaskItem, TaskScores, score_requests
from llmopt.results.codec import to_json


def choices(task: str, num_items: int) -> tuple[TaskRequest, ...]:
    texts = (" sea", " old house", " and", " man's")
    contexts = ["The water of the", "He went to", "It was a", "One"]
    return tuple(
        TaskRequest(str(i), task, f"{contexts[i % 4]} {i}", texts, i % 4) for i in range(num_items)
    )


def test_a_model_against_itself_changes_nothing(task_model):
    items = {
        "choose": choices("choose", 6),
        "last": (TaskRequest("0", "last", "A", (" b",), None),),
    }
    heard: list[tuple[int, int]] = []
    report = compare_tasks(task_model, task_model, items, lambda *counts: heard.append(counts))
    assert [task.task for task in report.tasks] == ["choose", "last"]
    assert [m.metric for m in report.tasks[0].metrics] == ["acc", "acc_norm"]
    assert [m.metric for m in report.tasks[1].metrics] == ["exact"]
    assert all(m.judgement == "same" for task in report.tasks for m in task.metrics)
    assert report.overall is not None
    assert (report.overall.num_items, report.overall.judgement) == (7, "same")
    assert report.tasks[0].perplexity is None
    assert report.tasks[1].perplexity is not None
    assert report.tasks[1].perplexity.ratio == 1.0
    assert heard == sorted(heard)
    assert heard[-1] == (50, 50)


def test_each_model_answers_with_its_own_weights(make_task_model):
    base, target = make_task_model(seed=0), make_task_model(seed=1)
    items = {"choose": choices("choose", 8)}
    report = compare_tasks(target, base, items)
    assert (report.base_name, report.target_name) == ("tiny-0", "tiny-1")
    assert report.overall is None
    pairs = report.tasks[0].items
    assert tuple(pair.base for pair in pairs) == score_requests(base, items["choose"])
    assert tuple(pair.target for pair in pairs) == score_requests(target, items["choose"])
    acc = report.tasks[0].metrics[0]
    assert acc.num_lost == sum(p.base.correct and not p.target.correct for p in pairs)
    assert acc.base == sum(pair.base.correct for pair in pairs) / 8
    json.dumps(to_json(report))


def test_perplexity_of_targets():
    def scores(*values: float) -> list[TaskScores]:
        items = [TaskItem(str(i), (v,), None, False, None) for i, v in enumerate(values)]
        return [TaskScores("lambada", tuple(items))]

    report = build_report("t", "b", scores(-3.0, -5.0, -4.0), scores(-1.0, -2.0, -3.0), source="x")
    perplexity = report.tasks[0].perplexity
    assert perplexity is not None
    assert perplexity.base == pytest.approx(math.exp(2))
    assert perplexity.target == pytest.approx(math.exp(4))
    assert perplexity.ratio == pytest.approx(math.exp(2))
    assert perplexity.ratio_ci is not None
    assert perplexity.ratio_ci[0] < math.exp(2) < perplexity.ratio_ci[1]
    single = build_report("t", "b", scores(-3.0), scores(-1.0), source="x").tasks[0].perplexity
    assert single is not None
    assert single.ratio_ci is None


@pytest.mark.filterwarnings("error")
def test_a_perplexity_beyond_all_numbers_is_infinite():
    """Both models have answered by then: a hopeless one must not end in an error."""

    def scores(*values: float) -> list[TaskScores]:
        items = [TaskItem(str(i), (v,), None, False, None) for i, v in enumerate(values)]
        return [TaskScores("lambada", tuple(items))]

    report = build_report("t", "b", scores(-900.0, -800.0), scores(-1.0, -2.0), source="x")
    perplexity = report.tasks[0].perplexity
    assert perplexity is not None
    assert perplexity.base == pytest.approx(math.exp(1.5))
    assert (perplexity.target, perplexity.ratio) == (math.inf, math.inf)
    assert perplexity.ratio_ci == (math.inf, math.inf)
    json.dumps(to_json(report), allow_nan=False)


def test_nothing_to_answer(task_model):
    with pytest.raises(UsageError, match="no items"):
        compare_tasks(task_model, task_model, {})


def test_other_items_are_never_paired():
    base = [TaskScores("t", (TaskItem("0", (), None, True, None),))]
    target = [TaskScores("t", (TaskItem("1", (), None, True, None),))]
    with pytest.raises(AssertionError, match="same items"):
        build_report("t", "b", target, base, source="x")
