"""The mark of a finished session of paired runs, so that none is taken for another's.

Knows nothing about results. The law: a directory with a mark holds a whole session of just what the
mark says.
"""

import hashlib

from llmopt.bench.paired_runs import Session
from llmopt.errors import UsageError
from llmopt.results import files

_NAME = "session.json"


def is_finished(session: Session, commit: str | None) -> bool:
    """Whether the session's directory holds its results already.

    commit: of both sides; None: nobody knows. Raises UsageError if they are those of another
    session.
    """
    path = session.out / _NAME
    if not path.exists():
        return False
    if files.read(path) != _document(session, commit):
        raise UsageError(
            f"{session.out} holds a session of another recipe, commit, device or number of runs",
            "Choose another --out, or remove the directory.",
        )
    return True


def mark_finished(session: Session, commit: str | None) -> None:
    """Say that the session's results are all there. Raises OutputError."""
    files.write(session.out / _NAME, _document(session, commit))


def _document(session: Session, commit: str | None) -> dict[str, object]:
    return {
        "recipe_sha256": hashlib.sha256(session.recipe.read_bytes()).hexdigest(),
        "commit": commit,
        "device": session.device,
        "repeats": session.repeats,
    }
