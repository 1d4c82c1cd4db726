"""`llmopt report` with its options, on the committed results of the demo."""

import json
import re
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from llmopt.cli.app import app
from llmopt.errors import OutputError, ResultError, UsageError

DEMO = Path(__file__).parents[3] / "results" / "demo"


def run(*arguments: object) -> Result:
    return CliRunner().invoke(app, ["report", *map(str, arguments)])


def refused(*arguments: object) -> Exception:
    result = run(*arguments)
    assert isinstance(result.exception, Exception), result.output
    return result.exception


def test_choices_reach_the_table() -> None:
    result = run(DEMO, "--columns", "kld,throughput", "--where", "load=c8", "--sort", "-kld")
    assert result.exit_code == 0
    table = result.stdout.partition("\n* ")[0]
    lines = [line.split()[0] for line in table.splitlines() if " 8 " in line[:20]]
    assert lines == ["rtn-w4g64", "gptq-w4g64", "gptq-w8g64", "bf16", "fp32"]
    assert "TTFT\n" not in result.stdout


def test_the_baseline_and_the_groups_reach_the_table() -> None:
    result = run(DEMO, "--baseline", "bf16", "--group-by", "target", "--format", "json")
    rows = json.loads(result.stdout)["rows"]
    assert {row["baseline"] for row in rows} == {"bf16"}
    assert [row["target"] for row in rows][:2] == ["fp32", "fp32"]


def test_a_recommendation_in_words_and_as_json() -> None:
    result = run(DEMO, "--max-kld", "0.05")
    assert result.exit_code == 0
    assert re.search(r"Ship (bf16|gptq-w8g64) on llmopt 0.1.0 at c8\.", result.stdout)
    result = run(DEMO, "--recommend", "--slo", "ttft_p95<1ms", "--format", "json")
    (found,) = json.loads(result.stdout)["recommendations"]
    assert found["ship"] is None
    assert found["nearest"]["checks"][0]["standing"] == "misses"


def test_pictures_and_the_page_are_written(tmp_path: Path) -> None:
    result = run(DEMO, "--picture", "size", "--png", tmp_path / "a.svg")
    assert result.exit_code == 0
    assert (tmp_path / "a.svg").read_bytes().startswith(b"<?xml")
    result = run(DEMO, "--picture", "history", "--png", tmp_path / "none.png")
    assert "no picture" in result.stderr
    assert not (tmp_path / "none.png").exists()


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (["--recommend"], UsageError, "needs a bound"),
        (["--max-kld", "1", "--format", "csv"], UsageError, "no form 'csv'"),
        (["--max-memory", "lots"], UsageError, "--max-memory is 'lots'"),
        (["--slo", "soon"], UsageError, "'soon' is no bound"),
        (["--where", "load=c99"], UsageError, "No row meets"),
        (["--columns", "nothing"], UsageError, "no column 'nothing'"),
        (["--baseline", "nothing"], UsageError, "no target or backend 'nothing'"),
        (["--out", "/dev/null/x"], OutputError, "cannot be written"),
    ],
)
def test_what_makes_no_sense_is_one_sentence(
    arguments: list[str], error: type[Exception], message: str
) -> None:
    found = refused(DEMO, *arguments)
    assert isinstance(found, error)
    assert message in str(found)


def test_nothing_to_report_is_one_sentence(tmp_path: Path) -> None:
    assert isinstance(refused(tmp_path), ResultError)


def test_a_refused_report_leaves_the_older_one_as_it_was(tmp_path: Path) -> None:
    page = tmp_path / "report.html"
    page.write_text("older")
    refused(DEMO, "--format", "html", "--out", page, "--where", "load=c99")
    assert page.read_text() == "older"


def test_the_words_of_another_tool_name_what_was_not_read(tmp_path: Path) -> None:
    assert isinstance(refused(tmp_path / "none.json", "--as", "vllm"), ResultError)
    (tmp_path / "broken.json").write_text("{")
    found = run(DEMO, tmp_path, "--as", "vllm")
    assert found.exit_code == 0
    assert "broken.json" in found.stderr
