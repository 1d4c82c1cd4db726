import io
from collections.abc import Callable
from dataclasses import replace

import pytest
from rich.console import Console

from llmopt.cli.atlas_view import atlas_parts, bar
from llmopt.quality.atlas_report import AtlasPart, AtlasReport, Guess, WorstToken
from llmopt.results.schema import QualityBucket, QualityRecord


@pytest.fixture
def report(make_quality: Callable[..., QualityRecord]) -> AtlasReport:
    quality = make_quality(
        base_name="smollm2-135m",
        base_scheme="fp32",
        text_name="bundled",
        by_position=(QualityBucket("1-31", 124, 0.06, 0.9),),
        by_confidence=(QualityBucket("< 0.25", 200, 0.05, 0.85),),
    )
    blocks = [
        AtlasPart(f"block {i}", "block", i, kld, (0.000812 * kld, 1.30123 * kld), 0.99123)
        for i, kld in enumerate([0.03, 0.000123456, 0.015])
    ]
    token = WorstToken(
        window=1,
        position=17,
        kld=3.0,
        before="x" * 30 + "[bold]a\nb",
        token=" [/red]",
        after="y" * 40,
        base_probability=0.5,
        target_probability=0.001,
        base_guesses=(Guess(" the" * 20, 0.5), Guess("\n", 0.1)),
        target_guesses=(Guess(" an" * 20, 0.9),),
    )
    return AtlasReport("w4", quality, tuple(blocks), 0.045, (token,) * 30)


@pytest.fixture
def detailed(report) -> AtlasReport:
    halves = [
        AtlasPart(f"block {i} {name}", kind, i, kld, (kld, kld), 0.9)
        for i in range(3)
        for name, kind, kld in (("attention", "attention", 0.0111), ("MLP", "mlp", 0.0222))
    ]
    return replace(report, parts=(*report.parts, *halves))


def lines(report: AtlasReport) -> list[str]:
    console = Console(file=io.StringIO(), width=100)
    for part in atlas_parts(report):
        console.print(part)
    return console.file.getvalue().splitlines()


@pytest.mark.parametrize("name", ["report", "detailed"])
def test_nothing_is_wider_than_100_columns_or_cut(request, name):
    shown = lines(request.getfixturevalue(name))
    assert max(map(len, shown)) <= 100
    rows = [line for line in shown if line.startswith("block")]
    assert len(rows) == 3
    assert not any("…" in row for row in rows)


def test_a_row_has_the_parts_numbers_and_a_bar_as_long_as_its_loss(report):
    rows = [line for line in lines(report) if line.startswith("block")]
    assert rows[0].split()[:8] == [
        "block", "0", "0.0300", "[2.4e-05,", "0.039]", "66.7%", "99.1%", "█" * 40,
    ]  # fmt: skip
    assert rows[2].count("█") == 20
    assert "█" not in rows[1]


def test_halves_stand_beside_their_block(detailed):
    rows = [line for line in lines(detailed) if line.startswith("block")]
    assert "0.011  0.022" in " ".join(rows[1].split()).replace(" ", "  ")


def test_text_with_brackets_and_line_breaks_is_shown_as_it_is(report):
    text = "\n".join(lines(report))
    assert "x[bold]a↵b[ [/red]]yyy" in text
    assert text.count("  3.00  ") == 8  # of 30


def test_whole_and_sum_are_told(report):
    text = " ".join(" ".join(lines(report)).split())
    assert "w4 against smollm2-135m: 0.0500 nats per token [0.0400, 0.0600]" in text
    assert "add up to 0.045 nats, and together they lose 1.11 times that" in text
    assert "protocol windows; 95% intervals over windows" in text


def test_a_model_without_damage_is_shown(report):
    zero = tuple(replace(p, kld_mean=0.0, kld_mean_ci=(0.0, 0.0)) for p in report.parts)
    shown = lines(replace(report, parts=zero, parts_kld_sum=0.0, worst_tokens=()))
    assert "No part of the model differs from the base." in "\n".join(shown)


@pytest.mark.parametrize(
    ("share", "shown"), [(0.0, ""), (1.0, "████"), (0.5, "██"), (0.25 / 8, "▏"), (0.9, "███▋")]
)
def test_a_bar_is_as_long_as_its_share(share, shown):
    assert bar(share, 4) == shown
