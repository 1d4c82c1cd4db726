"""A report inside a document that also says other things, such as a README.

Knows nothing about reports. The law: only what stands between the two marker lines of a place
changes. A document may have several places, told apart by names.
"""

from pathlib import Path

from llmopt.errors import OutputError, UsageError


def markers(place: str | None = None) -> tuple[str, str]:
    """Return the lines that begin and end a place, of a name if it has one."""
    name = "" if place is None else f" {place}"
    return f"<!-- begin llmopt report{name} -->", f"<!-- end llmopt report{name} -->"


def embed(document: str, report: str, place: str | None = None) -> str:
    """Replace what stands between the marker lines. Raises UsageError if they are not there."""
    begin, end = markers(place)
    before, found, rest = document.partition(f"{begin}\n")
    _, closed, after = rest.partition(f"{end}\n")
    if not found or not closed:
        raise UsageError(
            "the document has no place for a report" + ("" if place is None else f" named {place}"),
            f"Put the two lines '{begin}' and '{end}' where the report should be.",
        )
    return f"{before}{begin}\n{report.rstrip()}\n{end}\n{after}"


def embed_in_file(path: Path, report: str, place: str | None = None) -> None:
    """Replace a report in a file. Raises UsageError, or OutputError if it cannot be written."""
    try:
        document = path.read_text(encoding="utf-8")
        path.write_text(embed(document, report, place), encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise OutputError(f"{path} cannot be rewritten ({error})", "Give a text file.") from error
