"""`llmopt gate`."""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from llmopt.report.gate.noise_floor import LearnedNoise
    from llmopt.report.gate.rules import Rules
    from llmopt.report.gate.verdict import GateReport
    from llmopt.results.schema import CellResult

MEASURE = "To measure first"
SHOW = "Where the verdict goes"


@dataclass(frozen=True, slots=True)
class _Outputs:
    as_json: bool
    junit: Path | None
    markdown: Path | None


def gate(
    context: typer.Context,
    new: Annotated[
        Path | None, typer.Argument(help="The new result files: one, or a directory of them.")
    ] = None,
    baseline: Annotated[
        Path | None, typer.Option("--baseline", help="Result files to compare them with.")
    ] = None,
    rules: Annotated[
        Path | None, typer.Option(help="YAML file of tolerances; the usual ones if absent.")
    ] = None,
    noise: Annotated[
        Path | None, typer.Option(help="Noise of this machine, as --aa learned it.")
    ] = None,
    relative_to: Annotated[
        str | None,
        typer.Option(
            metavar="CELL", help="Compare ratios to this cell's speed: for another machine."
        ),
    ] = None,
    run: Annotated[
        Path | None,
        typer.Option(
            metavar="RECIPE", help="Measure this recipe first, by turns.", rich_help_panel=MEASURE
        ),
    ] = None,
    against: Annotated[
        str | None,
        typer.Option(
            metavar="REVISION|RESULT",
            help="What to measure against: a git revision of llmopt, or results.",
            rich_help_panel=MEASURE,
        ),
    ] = None,
    aa: Annotated[
        int | None,
        typer.Option(
            "--aa",
            min=1,
            metavar="N",
            help="Measure one version against itself, N times: learns the noise.",
            rich_help_panel=MEASURE,
        ),
    ] = None,
    repeats: Annotated[
        int | None,
        typer.Option(
            min=1, help="Runs of each side; as the recipe says if absent.", rich_help_panel=MEASURE
        ),
    ] = None,
    out: Annotated[
        Path,
        typer.Option("--out", "-o", help="Directory for results.", rich_help_panel=MEASURE),
    ] = Path("llmopt-gate"),
    device: Annotated[
        str, typer.Option(help="cpu, cuda or cuda:N.", rich_help_panel=MEASURE)
    ] = "cpu",
    json: Annotated[bool, typer.Option("--json", help="Print JSON.", rich_help_panel=SHOW)] = False,
    junit: Annotated[
        Path | None, typer.Option(help="Write JUnit XML here.", rich_help_panel=SHOW)
    ] = None,
    markdown: Annotated[
        Path | None,
        typer.Option(help="Write a comment for a pull request here.", rich_help_panel=SHOW),
    ] = None,
    history: Annotated[
        Path | None,
        typer.Option(help="Keep the new results here too, by date.", rich_help_panel=SHOW),
    ] = None,
) -> None:
    """Say whether a change made quality or speed worse: PASS, REGRESSED or INCONCLUSIVE.

    The exit code is 0, 1 or 3 (2 is an error). A change counts as a regression only if it is both
    real, at 5 % for the whole gate, and beyond the tolerance; as a pass only if it is surely within
    it. Runs that were made by turns are compared in pairs, others with the noise between sessions.

    Examples:

        llmopt gate new-results --baseline results/history

        llmopt gate --run recipes/gate.yaml --against main --junit gate.xml

        llmopt gate --run recipes/gate.yaml --aa 20 --out aa
    """
    from llmopt.errors import UsageError
    from llmopt.report.gate.noise_floor import read_noise
    from llmopt.report.gate.rules import load_rules

    _check_options(new, baseline, run, against, aa)
    if run is None:
        _refuse_measuring(context)
    if aa is not None and any((noise, relative_to, junit, markdown, history)):
        raise UsageError(
            "--aa learns noise and gives no verdict on a change",
            "Leave --noise, --relative-to, --junit, --markdown and --history out.",
        )
    outputs = _Outputs(json, junit, markdown)
    chosen = load_rules(rules)
    known = None if noise is None else read_noise(noise)
    if run is not None and aa is not None:
        _learn(run, against, aa, repeats, out, device, chosen, as_json=json)
        return
    if run is not None:
        assert against is not None, "it was checked"
        old_files, new_files = _measure(run, against, repeats, out, device)
    else:
        assert new is not None, "it was checked"
        assert baseline is not None, "it was checked"
        old_files, new_files = [baseline], [new]
    report, results = _judge(old_files, new_files, chosen, known, relative_to)
    _show(report, outputs)
    if history is not None:
        from llmopt.report.gate.history import record

        typer.echo(f"{len(record(history, results))} results kept in {history}", err=True)
    raise typer.Exit(report.exit_code)


def _check_options(
    new: Path | None, baseline: Path | None, run: Path | None, against: str | None, aa: int | None
) -> None:
    from llmopt.errors import UsageError

    if run is None and (against is not None or aa is not None):
        raise UsageError("--against and --aa need a recipe", "Add --run RECIPE.")
    if run is not None and (new is not None or baseline is not None):
        raise UsageError(
            "--run measures both sides, and results were named too",
            "Use --run RECIPE --against RESULT, or NEW --baseline OLD.",
        )
    if run is not None and against is None and aa is None:
        raise UsageError("--run needs something to compare with", "Add --against or --aa.")
    if run is None and (new is None or baseline is None):
        raise UsageError(
            "NEW and --baseline belong together", "Give both, or --run RECIPE --against REVISION."
        )


def _refuse_measuring(context: typer.Context) -> None:
    """Results are judged as they are: an option of measuring would be ignored."""
    from llmopt.errors import UsageError

    for name in ("repeats", "out", "device"):
        source = context.get_parameter_source(name)
        if source is not None and source.name == "COMMANDLINE":
            raise UsageError(
                f"--{name} is about measuring, and results were named",
                "Leave it out, or give --run RECIPE.",
            )


def _measure(
    recipe: Path, against: str, repeats: int | None, out: Path, device: str
) -> tuple[list[Path], list[Path]]:
    """Make the runs; returns the result files of the old and of the new side, and no others."""
    from llmopt.bench.paired_runs import NEW, OLD, Session, run_session
    from llmopt.bench.worktree import source_root, worktree
    from llmopt.cli.progress import StageProgress

    session = Session(recipe, out, _repeats(recipe, repeats), device)
    root = source_root()
    with StageProgress() as progress:
        if Path(against).exists():
            return [Path(against)], run_session(session, {NEW: root}, progress)[NEW]
        with worktree(root, against) as tree:
            made = run_session(session, {OLD: tree, NEW: root}, progress)
    return made[OLD], made[NEW]


def _learn(
    recipe: Path,
    against: str | None,
    num_sessions: int,
    repeats: int | None,
    out: Path,
    device: str,
    rules: "Rules",
    *,
    as_json: bool,
) -> None:
    """Sessions of one version against itself; those that are there already are not made again."""
    from contextlib import nullcontext

    from llmopt.bench.paired_runs import NEW, OLD, Session, run_session
    from llmopt.bench.session_mark import is_finished, mark_finished
    from llmopt.bench.worktree import find_revision, source_root, worktree
    from llmopt.cli.output import print_json
    from llmopt.cli.progress import StageProgress
    from llmopt.hardware.device import environment_facts
    from llmopt.report.gate.matching import match
    from llmopt.report.gate.noise_floor import learn, write_noise
    from llmopt.report.gate.wording import headline

    root = source_root()
    commit = environment_facts("cpu").git_sha if against is None else find_revision(root, against)
    sessions, verdicts = [], []
    source = nullcontext(root) if against is None else worktree(root, against)
    with source as tree:
        for number in range(1, num_sessions + 1):
            folder = out / f"aa-{number:03d}"
            session = Session(recipe, folder, _repeats(recipe, repeats), device)
            if not is_finished(session, commit):
                with StageProgress() as progress:
                    run_session(session, {OLD: tree, NEW: tree}, progress)
                mark_finished(session, commit)
            report, results = _judge([folder / OLD], [folder / NEW], rules, None, None)
            sessions.append(match(_read([folder / OLD])[0], results))
            verdicts.append(report.verdict)
            typer.echo(f"A/A {number} of {num_sessions}: {headline(report)}", err=True)
    write_noise(out / "noise.json", learn(sessions, (rule.metric for rule in rules.rules)))
    counts = {word: verdicts.count(word) for word in ("PASS", "REGRESSED", "INCONCLUSIVE")}
    if as_json:
        print_json({"sessions": num_sessions, "verdicts": counts, "noise": out / "noise.json"})
    else:
        said = ", ".join(f"{count} {word}" for word, count in counts.items())
        typer.echo(f"{num_sessions} A/A sessions: {said}; the noise is in {out / 'noise.json'}")


def _judge(
    baseline: list[Path],
    new: list[Path],
    rules: "Rules",
    noise: "LearnedNoise | None",
    relative_to: str | None,
) -> "tuple[GateReport, list[CellResult]]":
    """The verdict, and the new results that it is about."""
    from dataclasses import replace

    from llmopt.report.gate.matching import newest
    from llmopt.report.gate.verdict import judge

    old_results, old_notes = _read(baseline)
    new_results, new_notes = _read(new)
    report = judge(old_results, new_results, rules, noise=noise, relative_to=relative_to)
    report = replace(report, notes=(*report.notes, *old_notes, *new_notes))
    return report, list(newest(new_results).values())


def _read(paths: list[Path]) -> "tuple[list[CellResult], list[str]]":
    """The results, and what could not be read. Raises ResultError if nothing could."""
    from llmopt.results.store import read_results

    results, errors = read_results(paths)
    if not results:
        raise errors[0]
    return results, [f"left out: {error.message}" for error in errors]


def _show(report: "GateReport", outputs: _Outputs) -> None:
    import os

    from llmopt.cli.output import open_output
    from llmopt.report.gate.gate_json import to_json_text
    from llmopt.report.gate.junit import to_junit
    from llmopt.report.gate.pr_comment import to_markdown
    from llmopt.report.gate.step_summary import append_summary
    from llmopt.report.gate.terminal import print_gate

    for path, text in ((outputs.junit, to_junit), (outputs.markdown, to_markdown)):
        if path is not None:
            with open_output(path) as stream:
                stream.write(text(report))
    append_summary(report, os.environ)
    if outputs.as_json:
        sys.stdout.write(to_json_text(report))
    else:
        print_gate(report, sys.stdout)


def _repeats(recipe: Path, repeats: int | None) -> int:
    from llmopt.recipe.load import load_recipe

    return load_recipe(recipe).repeats if repeats is None else repeats
