"""How a comparison of greedy outputs is shown at a terminal.

Knows what it says; generates nothing. The law: no line is wider than 100 columns, and what a text
contains is shown as it is, never read as markup.
"""

from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from llmopt.quality.greedy_report import FirstDifference, GreedyReport, GreedyRun
from llmopt.report.atlas_page import visible
from llmopt.results.schema import Interval

NUM_DIFFERENCES = 8


def greedy_parts(report: GreedyReport) -> list[RenderableType]:
    """What there is to print: how often and where outputs differ, beside what rounding does."""
    parts: list[RenderableType] = [
        Text(
            f"Greedy outputs against {report.base_name}: {report.prompt_source}, up to"
            f" {report.max_new_tokens} new tokens each, {report.num_tokens:,} in all"
        ),
        _table(report),
        Text(_meaning(report)),
    ]
    found = [prompt.difference for prompt in report.target.prompts if prompt.difference is not None]
    if found:
        found.sort(key=lambda difference: -difference.chosen_gap_nats)
        title = f"First differences of {report.target.name}, the surest of the base first"
        parts += ["", Text(title, style="bold"), _differences(found[:NUM_DIFFERENCES])]
    return parts


def _meaning(report: GreedyReport) -> str:
    text = (
        "diverged: prompts whose output differs somewhere. flips: tokens of the base's outputs that"
        " the model would not choose."
    )
    if report.near_tie_nats is None:
        return f"{text} Without a 16-bit run of the base near ties are not told from damage."
    return (
        f"{text} damaged: the first difference is no near tie. Near tie: the base prefers its own"
        f" token by at most {report.near_tie_nats:.3g} nats, which rounding to 16 bits alone moves"
        " (99 % of its changes are smaller)."
    )


def _table(report: GreedyReport) -> Table:
    table = Table(header_style="bold", box=None, pad_edge=False)
    table.add_column("", overflow="fold")
    for name in ("diverged", "damaged", "near ties", "median position", "flips"):
        table.add_column(name, justify="right", no_wrap=True)
    for run in (report.target, report.noise):
        if run is not None:
            table.add_row(Text(run.name), *_cells(run))
    return table


def _cells(run: GreedyRun) -> list[str]:
    damaged = "–"
    if run.damaged is not None and run.damaged_ci is not None:
        damaged = f"{run.damaged:.0%} {_interval(run.damaged_ci)}"
    return [
        f"{run.diverged:.0%} {_interval(run.diverged_ci)}",
        damaged,
        "–" if run.near_ties is None else f"{run.near_ties:.0%}",
        "none" if run.median_position is None else str(run.median_position),
        f"{run.flips:.2%}",
    ]


def _differences(found: list[FirstDifference]) -> Table:
    table = Table(header_style="bold", box=None, pad_edge=False)
    for name in ("position", "base's top-2 gap", "nats", "to chosen"):
        table.add_column(name, justify="right", no_wrap=True)
    for name in ("base", "model"):
        table.add_column(name, overflow="fold")
    table.add_column("", no_wrap=True)
    for one in found:
        table.add_row(
            str(one.position),
            f"{one.gap:.4f}",
            f"{one.gap_nats:.3g}",
            f"{one.chosen_gap_nats:.3g}",
            Text(repr(visible(one.base_token))),
            Text(repr(visible(one.token))),
            {True: "near tie", False: "damage", None: ""}[one.near_tie],
        )
    return table


def _interval(interval: Interval) -> str:
    low, high = interval
    return f"[{low:.0%}, {high:.0%}]"
