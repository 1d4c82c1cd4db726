import io
from dataclasses import replace

import pytest
from rich.console import Console

from llmopt.cli.greedy_view import greedy_parts
from llmopt.quality.greedy_report import FirstDifference, GreedyPrompt, GreedyReport, GreedyRun


def difference(position: int, gap_nats: float, near_tie: bool | None) -> GreedyPrompt:
    found = FirstDifference(
        position, " [red]\n", " of the", gap_nats / 10, gap_nats, gap_nats, near_tie
    )
    return GreedyPrompt("a prompt", "an output", 128, found)


@pytest.fixture
def report() -> GreedyReport:
    prompts = tuple(difference(i, 0.1 * i, i < 2) for i in range(12))
    target = GreedyRun(
        name="a-model-with-a-rather-long-name-gptq-w4g128-asym",
        prompts=(*prompts, GreedyPrompt("a", "b", 128, None)),
        diverged=12 / 13,
        diverged_ci=(0.667, 0.986),
        damaged=10 / 13,
        damaged_ci=(0.497, 0.918),
        near_ties=1 / 6,
        median_position=6,
        flips=0.0432,
        flips_ci=(0.03, 0.05),
        flips_beyond_noise=0.02,
    )
    noise = GreedyRun(
        name="smollm2-135m in 16 bits",
        prompts=(GreedyPrompt("a", "b", 128, None),) * 13,
        diverged=0.0,
        diverged_ci=(0.0, 0.228),
        damaged=0.0,
        damaged_ci=(0.0, 0.228),
        near_ties=None,
        median_position=None,
        flips=0.001,
        flips_ci=(0.0, 0.002),
        flips_beyond_noise=0.0,
    )
    return GreedyReport("smollm2-135m", "13 prompts", 128, 1664, 0.0731, target, noise)


def text(report: GreedyReport) -> str:
    console = Console(file=io.StringIO(), width=100)
    for part in greedy_parts(report):
        console.print(part)
    shown = console.file.getvalue()
    assert max(map(len, shown.splitlines())) <= 100
    assert "…" not in shown
    return shown


def test_the_model_stands_beside_what_noise_does(report):
    shown = text(report)
    row = next(line for line in shown.splitlines() if "92%" in line)
    assert " ".join(row.split()).endswith("92% [67%, 99%] 77% [50%, 92%] 17% 6 4.32%")
    noise = next(line for line in shown.splitlines() if line.startswith("smollm2-135m in"))
    assert " ".join(noise.split()).endswith("0% [0%, 23%] 0% [0%, 23%] – none 0.10%")
    assert "0.0731 nats" in shown


def test_the_surest_differences_come_first(report):
    rows = [line.split() for line in text(report).splitlines() if "' [red]↵'" in line]
    assert [int(row[0]) for row in rows] == [11, 10, 9, 8, 7, 6, 5, 4]
    assert rows[0][1:4] == ["0.1100", "1.1", "1.1"]
    assert rows[0][-1] == "damage"


def test_without_a_noise_run_ties_are_not_told(report):
    prompts = (difference(3, 0.4, None),)
    target = replace(report.target, prompts=prompts, damaged=None, damaged_ci=None, near_ties=None)
    shown = text(replace(report, target=target, noise=None, near_tie_nats=None))
    assert "near ties are not told from damage" in " ".join(shown.split())
    assert "damage\n" not in shown
    assert "in 16 bits" not in shown


def test_without_differences_there_is_no_table_of_them(report):
    assert "First differences" not in text(replace(report, target=report.noise))
