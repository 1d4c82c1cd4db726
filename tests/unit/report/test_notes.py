from collections.abc import Callable
from dataclasses import replace

from llmopt.errors import ResultError
from llmopt.report.notes import QUALITY_DEFINITIONS, SPEED_DEFINITIONS, VERDICT_DEFINITION
from llmopt.report.report import make_report
from llmopt.results.schema import CellResult, ValidityCheck

MakeResult = Callable[..., CellResult]


def test_the_demo_is_explained(demo_results: list[CellResult]) -> None:
    notes = make_report(demo_results).notes
    assert notes[: len(SPEED_DEFINITIONS)] == SPEED_DEFINITIONS
    text = "\n".join(notes)
    assert "first token is excluded" in text
    assert "205 GFLOP/s in bfloat16, 98.3 GFLOP/s in float32; reads 11.4 GB/s" in text
    assert "Quality against smollm2-135m (fp32, perplexity 36.1) on evaluation.txt" in text
    assert (
        "(sha256 abababab), protocol windows: windows of 512, all positions scored, first 16; "
        "8176 positions; 95 % intervals."
    ) in text
    assert VERDICT_DEFINITION not in notes
    assert text.count("channels permuted") == 1
    assert "32 requests, 8 in flight, 128 prompt and 64 output tokens each; 3 runs" in text
    assert "git 0123456), torch 2.13.0" in text


def test_problems_come_first(make_result: MakeResult) -> None:
    results = [
        make_result("bf16", summary=None, error="no memory"),
        make_result("fp32", validity=(ValidityCheck("requests", False, "1 of 4 failed"),)),
        make_result("fp32", created_at="2020-01-01T00:00:00Z"),
    ]
    notes = make_report(results, [ResultError("a.json is cut off", "Remove it.")]).notes
    assert notes[:4] == (
        "fp32 at concurrency 1 is invalid: requests: 1 of 4 failed",
        "bf16 at concurrency 1 failed: no memory",
        "not read: a.json is cut off. Remove it.",
        "1 older results of the same cells are not shown.",
    )


def test_rows_of_other_runtimes_are_named_with_theirs(make_result: MakeResult) -> None:
    failed = (ValidityCheck("requests", False, "1 of 4 failed"),)
    own = make_result("fp32", validity=failed)
    other = replace(own, backend=replace(own.backend, name="vllm", version="0.32.0"))
    assert {"fp32 at concurrency 1 is invalid: requests: 1 of 4 failed"} | {
        "fp32 on vllm at concurrency 1 is invalid: requests: 1 of 4 failed"
    } == set(make_report([own, other]).notes[:2])


def test_a_drift_is_said_and_hides_only_what_took_no_turns(make_result: MakeResult) -> None:
    drifting = (ValidityCheck("drift", False, "TPOT changes by +12.3% over the runs, p = 0.017"),)
    report = make_report([make_result("fp32"), make_result("gptq-w4g64", validity=drifting)])
    assert [row.status for row in report.rows] == ["ok", "ok"]
    assert all(row.speed is not None for row in report.rows)
    assert report.notes[0] == (
        "gptq-w4g64 at concurrency 1 drifted, as all that took turns with it may have: TPOT "
        "changes by +12.3% over the runs, p = 0.017."
    )
    (alone,) = make_report([make_result("gptq-w4g64", validity=drifting)]).rows
    assert (alone.status, alone.speed) == ("invalid", None)


def test_noisy_runs_are_named(make_result: MakeResult) -> None:
    result = make_result()
    assert result.summary is not None
    noisy = replace(result.summary, run_output_throughput=(60.0, 70.0, 71.0))
    (row,) = make_report([replace(result, summary=noisy)]).rows
    notes = make_report([replace(result, summary=noisy)]).notes
    assert row.speed is not None
    assert notes[0] == "Noisy, tok/s of the runs: gptq-w4g64 at concurrency 1 from 60.0 to 71.0."
    assert not any("Noisy" in note for note in make_report([result]).notes)


def test_uncommitted_changes_are_told(make_result: MakeResult) -> None:
    result = make_result()
    dirty = replace(result, environment=replace(result.environment, git_dirty=True))
    assert "(git 0123456, with uncommitted changes)" in make_report([dirty]).notes[-1]
    no_git = replace(result, environment=replace(result.environment, git_sha=None, git_dirty=None))
    assert "(no git)" in make_report([no_git]).notes[-1]


def test_the_methods_are_explained(methods_results: list[CellResult]) -> None:
    notes = make_report(methods_results).notes
    assert notes[: len(QUALITY_DEFINITIONS)] == QUALITY_DEFINITIONS
    text = "\n".join(notes)
    assert "TPOT" not in text
    assert "GFLOP/s" not in text
    assert text.count("Calibration: 32 windows of 512 tokens of bundled (sha256 cdcdcdcd).") == 1
    assert text.count("Shared by the schemes of a pass: 61.2 s.") == 1


def test_the_noise_floor_is_told_once_with_its_figures(
    methods_results: list[CellResult], judged: Callable[[CellResult], CellResult]
) -> None:
    notes = make_report([judged(result) for result in methods_results]).notes
    assert notes.count(VERDICT_DEFINITION) == 1
    floor = "The noise floor is the base in bf16: KLD 0.00040 [.00038, .00042], PPL ratio 1.0001"
    assert [note for note in notes if floor in note] == [f"{floor} [0.9996, 1.0006]."]


def test_whose_log_probabilities_they_are_is_told(make_result: MakeResult) -> None:
    result = make_result()
    assert result.quality is not None
    theirs = replace(result, quality=replace(result.quality, source="llama.cpp"))
    assert "intervals, log-probabilities of llama.cpp." in "\n".join(make_report([theirs]).notes)


def test_a_method_that_failed_is_named(make_method: MakeResult) -> None:
    failed = make_method("nf4", error="no memory", quality=None)
    assert make_report([failed]).notes[0] == "nf4 failed: no memory"


def test_recipes_are_told_apart(
    methods_results: list[CellResult], demo_results: list[CellResult]
) -> None:
    notes = make_report([*demo_results, *methods_results]).notes
    both = (*SPEED_DEFINITIONS, *QUALITY_DEFINITIONS)
    assert notes[: len(both) - 1] == tuple(dict.fromkeys(both))
    starts = [note.partition(": ")[0] for note in notes if "Quality against" in note]
    assert sorted(starts) == ["demo", "methods"]
    assert any(note.startswith("methods: Calibration: 32") for note in notes)
