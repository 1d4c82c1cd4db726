import io
from dataclasses import replace

from llmopt.cli.evaluate_view import print_parts
from llmopt.cli.tasks_view import tasks_parts
from llmopt.quality.tasks.paired import compare_answers
from llmopt.quality.tasks.report import (
    ItemPair,
    PairedPerplexity,
    TaskComparison,
    TaskReport,
)
from llmopt.quality.tasks.score import TaskItem

ITEM = TaskItem("0", (-1.0,), None, True, None)
NOISE = compare_answers("acc", [True] * 50 + [False] * 50, [True] * 49 + [False] * 51)
LOST = compare_answers("acc_norm", [True] * 100, [True] * 40 + [False] * 60)
REPORT = TaskReport(
    base_name="smollm2-135m",
    target_name="smollm2-w4",
    source="requests",
    confidence=0.95,
    tasks=(
        TaskComparison("hellaswag", (NOISE, LOST), None, ()),
        TaskComparison(
            "lambada_openai_with_a_long_name",
            (replace(NOISE, metric="exact"),),
            PairedPerplexity(27.31, 29.02, 1.0626, (1.021, 1.103)),
            (ItemPair(ITEM, ITEM),),
        ),
    ),
    overall=NOISE,
)


def lines(report: TaskReport) -> list[str]:
    out = io.StringIO()
    print_parts(tasks_parts(report), out)
    return out.getvalue().splitlines()


def test_both_accuracies_and_the_sentence_are_shown_in_100_columns() -> None:
    shown = lines(REPORT)
    assert max(map(len, shown)) <= 100
    text = " ".join(" ".join(shown).split())
    assert "Tasks: smollm2-w4 against smollm2-135m (requests)" in text
    assert "hellaswag acc 100 50.0% 49.0% the difference is within noise" in text
    assert "acc_norm 100 100.0% 40.0% lost 60.0 points" in text
    assert "ppl 1 27.31 29.02 ratio 1.0626 [1.0210, 1.1030]" in text
    assert "all acc 100 50.0% 49.0%" in text
    assert "95% intervals over items" in text


def test_a_single_item_has_no_interval() -> None:
    task = REPORT.tasks[1]
    assert task.perplexity is not None
    alone = replace(task, perplexity=replace(task.perplexity, ratio_ci=None))
    text = "\n".join(lines(replace(REPORT, tasks=(alone,), overall=None)))
    assert "ratio 1.0626" in text
    assert "1.0626 [" not in text
    assert "\nall" not in text
