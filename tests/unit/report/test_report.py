from collections.abc import Callable
from dataclasses import replace

from llmopt.report.report import make_report
from llmopt.results.schema import CellResult


def test_the_demo_is_one_section(demo_results: list[CellResult]) -> None:
    report = make_report(demo_results)
    (section,) = report.sections
    assert section.title == "demo: llmopt 0.1.0 on Test CPU (2 cores, 2 threads)"
    assert report.rows == section.rows
    assert len(section.rows) == 10


def test_what_cannot_be_compared_stands_apart(make_result: Callable[..., CellResult]) -> None:
    result = make_result()
    results = [
        result,
        replace(result, recipe_name="other"),
        replace(result, environment=replace(result.environment, device="Other CPU")),
        replace(result, backend=replace(result.backend, name="vllm")),
    ]
    titles = [section.title for section in make_report(results).sections]
    assert sorted(titles) == [
        "demo: llmopt 0.1.0 on Other CPU (2 cores, 2 threads)",
        "demo: llmopt 0.1.0 on Test CPU (2 cores, 2 threads)",
        "demo: vllm 0.1.0 on Test CPU (2 cores, 2 threads)",
        "other: llmopt 0.1.0 on Test CPU (2 cores, 2 threads)",
    ]


def test_quality_alone_and_speed_stand_apart(make_result: Callable[..., CellResult]) -> None:
    result = make_result()
    alone = replace(result, cell_id="other", load=None, runs=(), summary=None)
    sections = make_report([result, alone]).sections
    assert [len(section.rows) for section in sections] == [1, 1]
    assert {section.title for section in sections} == {
        "demo: llmopt 0.1.0 on Test CPU (2 cores, 2 threads)"
    }
