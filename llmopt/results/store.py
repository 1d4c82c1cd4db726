"""Result files: one per measured cell, written once, read back with every bad file named.

Knows nothing about measuring. The law: a result that was written is never changed or overwritten;
a new measurement of the same cell gets the next number: "<cell_id>/0002-<git sha>.json".
"""

import os
from collections.abc import Iterable, Iterator
from pathlib import Path

from llmopt.errors import ResultError
from llmopt.results import files
from llmopt.results.codec import from_json, to_json
from llmopt.results.schema import SCHEMA_VERSION, CellResult

_CHECKPOINT_FILES = {"config.json", "quantization.json"}
JOURNAL_NAME = "partial.json"  # an unfinished cell, written by llmopt.results.journal


def write_once(directory: str | Path, result: CellResult) -> Path:
    """Write the result as the next file of its cell and return the path.

    The path is "<directory>/<cell_id>/<4 digits>-<first 7 of the git sha, or nogit>.json".
    Raises OutputError: no permission, no space, a file where a directory must be.
    """
    folder = Path(directory) / result.cell_id
    assert folder.parent == Path(directory), "a cell id is one path component"
    sha = (result.environment.git_sha or "nogit")[:7]
    document = to_json(result)
    number = 1 + max(map(_number, folder.glob("[0-9]*.json")), default=0)
    while not files.write_new(path := folder / f"{number:04d}-{sha}.json", document):
        number += 1
    return path


def read_result(path: str | Path) -> CellResult:
    """Return the result in a file. Raises ResultError: unreadable, cut off, foreign, old schema."""
    path = Path(path)
    document = files.read(path)
    if "schema_version" not in document or "cell_id" not in document:
        raise ResultError(f"{path} is not an llmopt result file", "Leave it out.")
    if "fingerprint" in document:
        raise ResultError(
            f"{path} is the journal of an unfinished cell", "Run the bench again to finish it."
        )
    version = document["schema_version"]
    if version != SCHEMA_VERSION:
        raise ResultError(
            f"{path} has the result schema {version!r}; this llmopt reads {SCHEMA_VERSION}",
            "Measure again, or use the llmopt that wrote it.",
        )
    return from_json(CellResult, document, str(path))


def read_results(
    paths: Iterable[str | Path],
) -> tuple[list[CellResult], list[ResultError]]:
    """Read files, and directories with all the .json files below them.

    Journals and model checkpoints (directories with a config.json or a quantization.json) below a
    directory are left out.

    Returns the results in the order of the paths (sorted within a directory; a file that is
    reached twice is read once), and one error for each path that gave none.
    """
    results: list[CellResult] = []
    files_found, errors = result_files(paths)
    for path in files_found:
        try:
            results.append(read_result(path))
        except ResultError as error:
            errors.append(error)
    return results, errors


def result_files(paths: Iterable[str | Path]) -> tuple[list[Path], list[ResultError]]:
    """Return the files that `read_results` reads, and an error for each directory without any."""
    errors: list[ResultError] = []
    found: dict[Path, Path] = {}
    for path in _expand(paths, errors):
        found.setdefault(path.resolve(), path)
    return list(found.values()), errors


def _expand(paths: Iterable[str | Path], errors: list[ResultError]) -> Iterator[Path]:
    for path in map(Path, paths):
        if not path.is_dir():
            yield path
            continue
        found = sorted(_walk(path))
        if not found:
            errors.append(
                ResultError(f"{path} holds no result files", "Run llmopt bench with --out there.")
            )
        yield from found


def _walk(directory: Path) -> Iterator[Path]:
    for folder, folders, names in os.walk(directory):
        if _CHECKPOINT_FILES.intersection(names):  # a bench may have made it here
            folders.clear()
            continue
        folders[:] = [name for name in folders if not name.startswith(".")]
        for name in names:
            if name.endswith(".json") and name != JOURNAL_NAME and not name.startswith("."):
                yield Path(folder, name)


def _number(path: Path) -> int:
    digits = path.name.partition("-")[0]
    return int(digits) if digits.isdecimal() else 0
