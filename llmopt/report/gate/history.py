"""The history of results: plain files in one directory per measurement.

The layout is "<history>/<date>-<git sha>/<cell id>/<number>-<git sha>.json", so that all of it is
read as any directory of results. Knows nothing about verdicts. The law: what is there is never
changed; when a result was made is what its file says (`created_at`), not the name of a directory.
"""

from collections.abc import Iterable
from pathlib import Path

from llmopt.report.gate.matching import made_at
from llmopt.results.schema import CellResult
from llmopt.results.store import write_once

_SHA_DIGITS = 7


def record(history: Path, results: Iterable[CellResult]) -> list[Path]:
    """Add results to a history and return the new files. Raises OutputError."""
    return [write_once(history / entry_name(result), result) for result in results]


def entry_name(result: CellResult) -> str:
    """Return "2026-11-22-0123456": the day on which the result was made, and the commit."""
    sha = "".join(filter(str.isalnum, result.environment.git_sha or "nogit"))
    return f"{made_at(result.created_at):%Y-%m-%d}-{sha[:_SHA_DIGITS]}"
