"""A report inside a document that also says other things, such as a README.

Knows nothing about reports. The law: only what stands between the two marker lines of a place
changes. A document may have several places, told apart by names.
"""

import os
import shutil
from pathlib import Path

from llmopt.errors import OutputError, UsageError


def markers(place: str | None = None) -> tuple[str, str]:
    """Return the lines that begin and end a place, of a name if it has one."""
    name = "" if place is None else f" {place}"
    return f"<!-- begin llmopt report{name} -->", f"<!-- end llmopt report{name} -->"


def embed(document: str, report: str, place: str | None = None) -> str:
    """Replace what stands between the marker lines. Raises UsageError if they are not there."""
    begin, end = markers(place)
    line_end = "\r\n" if f"{begin}\r\n" in document else "\n"
    before, found, rest = document.partition(f"{begin}{line_end}")
    _, closed, after = rest.partition(f"{end}{line_end}")
    if not found or not closed:
        raise UsageError(
            "the document has no place for a report" + ("" if place is None else f" named {place}"),
            f"Put the two lines '{begin}' and '{end}' where the report should be.",
        )
    lines = [begin, *report.rstrip().split("\n"), end, ""]
    return f"{before}{line_end.join(lines)}{after}"


def embed_in_file(path: Path, report: str, place: str | None = None) -> None:
    """Replace a report in a file, at once. Raises UsageError, or OutputError if it cannot be
    written.
    """
    try:
        document = path.read_bytes().decode("utf-8")
        _replace(path.resolve(), embed(document, report, place).encode("utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise OutputError(f"{path} cannot be rewritten ({error})", "Give a text file.") from error


def _replace(path: Path, content: bytes) -> None:
    """All of the content or none of it: a full disk leaves the file as it was."""
    temporary = path.with_name(f".{path.name}.partial")
    try:
        temporary.write_bytes(content)
        shutil.copymode(path, temporary)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
