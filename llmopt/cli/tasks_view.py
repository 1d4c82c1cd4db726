"""How tasks look at a terminal: both accuracies, the flips, and whether they are more than noise.

Knows what a report says; computes nothing. The law: an accuracy never stands without its base's.
"""

from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from llmopt.quality.tasks.paired import Judgement, PairedAccuracy
from llmopt.quality.tasks.report import PairedPerplexity, TaskReport

_STYLES: dict[Judgement, str] = {
    "same": "green",
    "noise": "green",
    "lost": "red",
    "gained": "yellow",
}


def tasks_parts(report: TaskReport) -> list[RenderableType]:
    """What there is to print of a comparison on tasks."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("task", overflow="fold")
    table.add_column("metric", no_wrap=True)
    for column in ("items", "base", "model"):
        table.add_column(column, justify="right", no_wrap=True)
    table.add_column("difference")
    for task in report.tasks:
        for paired in task.metrics:
            _add(table, task.task, paired)
        if task.perplexity is not None:
            _add_perplexity(table, task.task, len(task.items), task.perplexity)
    if report.overall is not None:
        _add(table, "all", report.overall)
    title = f"Tasks: {report.target_name} against {report.base_name} ({report.source})"
    note = (
        f"differences in points with {report.confidence:.0%} intervals over items; lost and "
        "gained: items that only the base, or only the model, has right; p: exact McNemar test"
    )
    return [Text(title, style="bold"), table, Text(note, style="dim")]


def _add(table: Table, task: str, paired: PairedAccuracy) -> None:
    table.add_row(
        task,
        paired.metric,
        f"{paired.num_items:,}",
        f"{paired.base:.1%}",
        f"{paired.target:.1%}",
        Text(paired.text, style=_STYLES[paired.judgement]),
    )


def _add_perplexity(table: Table, task: str, num_items: int, measured: PairedPerplexity) -> None:
    ends = ""
    if measured.ratio_ci is not None:
        low, high = measured.ratio_ci
        ends = f" [{low:.4f}, {high:.4f}]"
    table.add_row(
        task,
        "ppl",
        f"{num_items:,}",
        f"{measured.base:.4g}",
        f"{measured.target:.4g}",
        f"ratio {measured.ratio:.4f}{ends}",
    )
