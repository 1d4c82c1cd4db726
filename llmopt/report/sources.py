"""Everything that a report can be made of: llmopt's results, kernel results, other tools' files.

Knows nothing about tables. The law: a file that cannot be read is one error, and the others are
read; a file that claims to be of llmopt is never taken for another tool's.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from llmopt.bench.audit_files import Document, read_documents
from llmopt.errors import ResultError
from llmopt.results.kernels import KernelResult, read_kernel_result
from llmopt.results.schema import CellResult
from llmopt.results.store import read_result, result_files

_OWN_FIELDS = {"schema_version", "fingerprint"}


@dataclass(slots=True)
class Sources:
    """What was read, in the order of the files."""

    results: list[CellResult] = field(default_factory=list)
    kernels: list[KernelResult] = field(default_factory=list)
    errors: list[ResultError] = field(default_factory=list)


def read_sources(paths: Iterable[str | Path]) -> Sources:
    """Read files, and directories with all the .json files below them (see `read_results`)."""
    files, errors = result_files(paths)
    sources = Sources(errors=errors)
    for path in files:
        try:
            sources.results.append(read_result(path))
        except ResultError as error:
            _read_other(path, error, sources)
    return sources


def _read_other(path: Path, error: ResultError, sources: Sources) -> None:
    """Read a file that is no result of llmopt bench; if it is of nobody, keep the first error."""
    try:
        documents = read_documents(path)
    except ResultError:
        sources.errors.append(error)
        return
    try:
        if documents[0].get("kind") == "kernels":
            sources.kernels.append(read_kernel_result(path))
        elif not _OWN_FIELDS.intersection(documents[0]) and _is_foreign(documents):
            from llmopt.report.imports.foreign_cells import import_cells

            cells = import_cells(path)
            sources.results += cells
            if not cells:
                sources.errors.append(_nothing_generated(path))
        else:
            sources.errors.append(error)
    except ResultError as other:
        sources.errors.append(other)


def _is_foreign(documents: list[Document]) -> bool:
    from llmopt.report.imports.foreign_cells import is_foreign

    return is_foreign(documents)


def _nothing_generated(path: Path) -> ResultError:
    return ResultError(
        f"{path} has no test that only generates tokens", "Run llama-bench with -p 0 -n 128."
    )
