"""The source of llmopt at another revision, in a directory of its own.

Knows git; knows nothing about measuring. The law: the checkout that llmopt runs from is not
touched, and the other one is gone afterwards, after an error or an interrupt too.
"""

import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import llmopt
from llmopt.errors import UsageError


def source_root() -> Path:
    """The directory that holds the running package `llmopt`."""
    return Path(llmopt.__file__).resolve().parents[1]


def find_revision(root: Path, revision: str) -> str:
    """The full hash of a revision such as "HEAD~1". Raises UsageError: no git, no such commit."""
    try:
        found = _git(root, "rev-parse", "--verify", "--end-of-options", f"{revision}^{{commit}}")
    except FileNotFoundError:
        raise UsageError(
            "git is not installed, so that no other revision can be run",
            "Install it, or compare with a result.",
        ) from None
    if found.returncode != 0:
        raise UsageError(
            f"{revision!r} is neither a result nor a revision of {root}",
            "Name a directory of results, or a commit that is there (a shallow clone lacks most).",
        )
    return found.stdout.strip()


@contextmanager
def worktree(root: Path, revision: str) -> Iterator[Path]:
    """The tree of a revision, for as long as the `with` lasts. Raises UsageError."""
    commit = find_revision(root, revision)
    with tempfile.TemporaryDirectory(prefix="llmopt-gate-", ignore_cleanup_errors=True) as folder:
        tree = Path(folder) / commit[:12]
        try:
            made = _git(root, "worktree", "add", "--detach", str(tree), commit)
            if made.returncode != 0:
                reason = (made.stderr.strip().splitlines() or ["git says nothing"])[-1]
                raise UsageError(
                    f"the revision {revision} cannot be checked out ({reason})",
                    "Compare with a result in its place.",
                )
            yield tree
        finally:
            _git(root, "worktree", "remove", "--force", str(tree))
            _git(root, "worktree", "prune")


def _git(root: Path, *arguments: str) -> "subprocess.CompletedProcess[str]":
    """In a session of its own: an interrupt at the terminal must not end the cleaning up."""
    return subprocess.run(
        ["git", "-C", str(root), *arguments],
        capture_output=True,
        text=True,
        check=False,
        start_new_session=True,
    )
