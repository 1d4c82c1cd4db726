"""A report inside a document that also says other things, such as a README.

Knows nothing about reports. The law: only what stands between the two marker lines changes.
"""

from pathlib import Path

from llmopt.errors import OutputError, UsageError

BEGIN, END = "<!-- begin llmopt report -->", "<!-- end llmopt report -->"


def embed(document: str, report: str) -> str:
    """Replace what stands between the marker lines. Raises UsageError if they are not there."""
    before, found, rest = document.partition(f"{BEGIN}\n")
    _, closed, after = rest.partition(f"{END}\n")
    if not found or not closed:
        raise UsageError(
            "the document has no place for a report",
            f"Put the two lines '{BEGIN}' and '{END}' where the report should be.",
        )
    return f"{before}{BEGIN}\n{report.rstrip()}\n{END}\n{after}"


def embed_in_file(path: Path, report: str) -> None:
    """Replace the report in a file. Raises UsageError, or OutputError if it cannot be written."""
    try:
        document = path.read_text(encoding="utf-8")
        path.write_text(embed(document, report), encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise OutputError(f"{path} cannot be rewritten ({error})", "Give a text file.") from error
