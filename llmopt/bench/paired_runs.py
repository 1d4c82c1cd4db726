"""A recipe measured with two versions of llmopt by turns, so that both see the same machine.

Knows nothing about verdicts. The laws: each run is a process of its own with the source of its
side, so that chance effects of a process (its memory's layout, its caches) are part of the scatter
between runs; the order is old, new, new, old and so on, so that a steady drift of the machine adds
to neither; a first process of each side makes the checkpoints and measures quality, which is
deterministic, and its runs do not count: all runs that count are made in the same way.
"""

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml

from llmopt.bench.metrics import summarize_cell
from llmopt.bench.observer import Observer, open_stage
from llmopt.bench.validity import check_cell
from llmopt.environment.process import follow_process
from llmopt.errors import ResultError, UsageError
from llmopt.recipe.load import load_recipe
from llmopt.recipe.schema import DUMMY, Recipe, all_targets, cells
from llmopt.results.files import make_directory, output_error
from llmopt.results.schema import CellResult
from llmopt.results.store import read_results, write_once

OLD, NEW = "old", "new"
PREPARATION = "first"  # in place of a repeat
_PROBE = "import llmopt, llmopt_kernels; print(llmopt.__file__); print(llmopt_kernels.__file__)"


@dataclass(frozen=True, slots=True)
class Session:
    """What is measured and where results go: to `out`/old and `out`/new, as of any bench."""

    recipe: Path
    out: Path
    repeats: int
    device: str = "cpu"


def run_session(
    session: Session, trees: Mapping[str, Path], observer: Observer
) -> dict[str, list[Path]]:
    """Measure each side, "old" or "new", from its source tree; return the result files of each.

    With one side only its runs follow each other. An interrupt leaves no results behind. Raises
    LLMOptError.
    """
    recipe = load_recipe(session.recipe)
    _refuse(recipe, session)
    for side, tree in trees.items():
        _require_source(side, tree)
    make_directory(session.out)
    with _parts(session.out) as parts:
        _write_recipes(session.recipe, recipe, parts)
        with open_stage(observer, "measure by turns"):
            repeats = session.repeats if recipe.loads else 0
            order = _order(list(trees), repeats)
            for done, (name, side) in enumerate(order):
                observer.stage_advanced(done, len(order), f"{side}, {name} of {repeats}")
                _run(session, parts, side, name, trees[side])
        merged = {side: _merged(parts, side, repeats, len(cells(recipe))) for side in trees}
    return {
        side: [write_once(session.out / side, result) for result in results]
        for side, results in merged.items()
    }


@contextmanager
def _parts(out: Path) -> Iterator[Path]:
    """A directory for what single runs write, for as long as the `with` lasts."""
    try:
        parts = Path(tempfile.mkdtemp(prefix=".parts-", dir=out))
    except OSError as error:
        raise output_error(out, error) from error
    try:
        yield parts
    finally:
        shutil.rmtree(parts, ignore_errors=True)


def merge(first: CellResult, results: Sequence[CellResult]) -> CellResult:
    """One result of a cell from several of one run each, in the order of time.

    Quality is that of `first`, and nothing else; if one of all has failed, so has the cell.
    """
    failed = next((result for result in (first, *results) if result.error is not None), None)
    if failed is not None:
        return replace(failed, runs=(), summary=None)
    if not results:
        return first
    last = results[-1]
    runs = tuple(
        replace(run, repeat=index)
        for index, run in enumerate(run for result in results for run in result.runs)
    )
    merged = replace(
        first,
        recipe=first.recipe | {"repeats": len(runs)},
        runs=runs,
        backend=last.backend,
        created_at=last.created_at,
    )
    if merged.load is None or not runs:
        return merged
    checks = check_cell(merged.load, runs)
    names = {check.name for check in checks}
    of_server = tuple(check for check in last.validity if check.name not in names)
    merged = replace(merged, validity=(*checks, *of_server))
    return replace(merged, summary=summarize_cell(merged))


def _order(sides: Sequence[str], repeats: int) -> list[tuple[str, str]]:
    """Preparations, then old, new, new, old, old, new: each second repeat goes backwards."""
    return [(PREPARATION, side) for side in sides] + [
        (_name(repeat), side)
        for repeat in range(repeats)
        for side in (sides if repeat % 2 == 0 else reversed(sides))
    ]


def _name(repeat: int) -> str:
    return f"{repeat + 1:04d}"


def _refuse(recipe: Recipe, session: Session) -> None:
    if session.repeats < 1:
        raise UsageError(f"{session.repeats} runs were asked for", "Ask for one or more.")
    for load in recipe.loads:
        if load.is_searched:
            raise UsageError(
                f"the recipe {session.recipe} searches a rate, which differs from run to run",
                "Give its loads the rate.",
            )


def _require_source(side: str, tree: Path) -> None:
    """That a process of this side really imports its own source."""
    probe = subprocess.run(
        [sys.executable, "-P", "-c", _PROBE],
        env=_variables(tree),
        capture_output=True,
        text=True,
        check=False,
    )
    found = [Path(line).resolve() for line in probe.stdout.split("\n") if line]
    if len(found) != 2 or not all(path.is_relative_to(tree.resolve()) for path in found):
        where = ", ".join(map(str, found)) or "nowhere"
        raise UsageError(
            f"the {side} side would import llmopt from {where} and not from {tree}",
            "Install llmopt in the usual way, or editable, so that PYTHONPATH goes before it.",
        )


def _variables(tree: Path) -> dict[str, str]:
    return os.environ | {"PYTHONPATH": os.pathsep.join([str(tree), str(tree / "kernels")])}


def _write_recipes(path: Path, recipe: Recipe, parts: Path) -> None:
    """The recipe of one run, with and without quality, as the user wrote it otherwise.

    What the user left out stays left out: the other version may not know of it yet.
    """
    document: dict[str, Any] = yaml.safe_load(path.read_text(encoding="utf-8"))
    for name in ("until_ci", "max_repeats"):
        document.pop(name, None)
    document["repeats"] = 1
    written_targets = [document["base"], *(document.get("targets") or ())]
    for written, target in zip(written_targets, all_targets(recipe), strict=True):
        if target.dummy_config is not None and Path(target.dummy_config).exists():
            written["model"] = f"{DUMMY}{Path(target.dummy_config).absolute()}"
    for written, load in zip(document.get("loads") or (), recipe.loads, strict=True):
        if load.trace is not None:
            written["trace"] = str(Path(load.trace).absolute())
        if load.workload.prompts is not None:
            written["workload"]["prompts"] = str(Path(load.workload.prompts).absolute())
    without = {key: value for key, value in document.items() if key != "quality"}
    try:
        for name, content in ((PREPARATION, document), ("later", without)):
            text = yaml.safe_dump(content, sort_keys=False, allow_unicode=True)
            (parts / f"{name}.yaml").write_text(text, encoding="utf-8")
    except OSError as error:
        raise output_error(parts, error) from error


def _run(session: Session, parts: Path, side: str, name: str, tree: Path) -> None:
    """One run of every cell. A cell that fails says so in its result; all else is an error."""
    recipe = parts / f"{name if name == PREPARATION else 'later'}.yaml"
    folder = parts / side / name
    command: list[str | Path] = [sys.executable, "-P", "-m", "llmopt", "bench", recipe]
    command += ["--out", folder, "--work", parts / f"checkpoints-{side}"]
    command += ["--device", session.device]
    last: list[str] = []

    def keep(line: str) -> None:
        last[:] = [line]

    log = session.out / f"{side}.log"
    status = follow_process(command, variables=_variables(tree), log=log, on_line=keep)
    if status not in (0, 1) or not folder.is_dir():
        raise ResultError(
            f"the {side} side could not be measured: {(last or ['it says nothing'])[0]}",
            f"Its output is in {log}.",
        )


def _merged(parts: Path, side: str, repeats: int, num_cells: int) -> list[CellResult]:
    by_cell: dict[str, list[CellResult]] = {}
    for name in (PREPARATION, *map(_name, range(repeats))):
        results, errors = read_results([parts / side / name])
        if errors:
            raise errors[0]
        for result in results:
            by_cell.setdefault(result.cell_id, []).append(result)
    if len(by_cell) != num_cells or any(len(each) != 1 + repeats for each in by_cell.values()):
        raise ResultError(
            f"the {side} side measured other cells than the recipe has",
            "Use a recipe that both versions read in the same way.",
        )
    return [merge(first, others) for first, *others in by_cell.values()]
