"""The journal of an unfinished cell, so that an interrupted sweep goes on where it stopped.

Knows nothing about how runs are made. The law: a journal is replaced as a whole after every run
and is used only if its fingerprint is the one asked for; anything else is as if there were none.
"""

import hashlib
import json
from pathlib import Path

from llmopt.errors import ResultError
from llmopt.results import files
from llmopt.results.codec import from_json, to_json
from llmopt.results.schema import SCHEMA_VERSION, Environment, PartialCell
from llmopt.results.store import JOURNAL_NAME


def fingerprint(cell: dict[str, object], environment: Environment) -> str:
    """Return the sha256 of what a cell measures (recipe.schema.cell_document) and where."""
    content = json.dumps([cell, to_json(environment)], sort_keys=True)
    return hashlib.sha256(content.encode()).hexdigest()


def save_partial(directory: str | Path, partial: PartialCell) -> Path:
    """Write or replace the journal of the cell and return its path. Raises OutputError."""
    path = _path(directory, partial.cell_id)
    files.write(path, to_json(partial))
    return path


def load_partial(directory: str | Path, cell_id: str, fingerprint: str) -> PartialCell | None:
    """Return the journal of the cell; None if there is none, or it is stale or damaged."""
    path = _path(directory, cell_id)
    try:
        document = files.read(path)
        if document.get("schema_version") != SCHEMA_VERSION:
            return None
        partial = from_json(PartialCell, document, str(path))
    except ResultError:
        return None
    return partial if partial.fingerprint == fingerprint else None


def drop_partial(directory: str | Path, cell_id: str) -> None:
    """Remove the journal of the cell, if there is one. Raises OutputError."""
    path = _path(directory, cell_id)
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        raise files.output_error(path, error) from error


def _path(directory: str | Path, cell_id: str) -> Path:
    return Path(directory) / cell_id / JOURNAL_NAME
