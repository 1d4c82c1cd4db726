"""From result files to a report in one of the formats, with or without the picture.

Knows nothing about the layout of any format. The law: the formats say the same; only CSV leaves
the notes out, because it is for programs.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal, TextIO

from llmopt.errors import ResultError
from llmopt.report.export import to_csv, to_json_text
from llmopt.report.markdown import to_markdown
from llmopt.report.plot import write_plot
from llmopt.report.report import Report, make_report
from llmopt.report.terminal import print_report
from llmopt.results.schema import CellResult

Format = Literal["terminal", "markdown", "csv", "json"]

_TEXTS: dict[Format, Callable[[Report], str]] = {
    "markdown": to_markdown,
    "csv": to_csv,
    "json": to_json_text,
}


def render(
    results: Sequence[CellResult],
    errors: Sequence[ResultError],
    format: Format,
    out: TextIO,
    plot: str | Path | None = None,
) -> Path | None:
    """Write the report to `out`, and the picture to `plot` if it is given.

    `errors` are the files that could not be read; they become notes. Returns the path of the
    picture; None if none was asked for or no row has both quality and speed. Raises ResultError if
    there is nothing to report, and OutputError if the picture cannot be written.
    """
    if not results:
        raise _nothing(errors)
    report = make_report(results, errors)
    if format == "terminal":
        print_report(report, out)
    else:
        out.write(_TEXTS[format](report))
    return None if plot is None else write_plot(report, plot)


def _nothing(errors: Sequence[ResultError]) -> ResultError:
    if len(errors) == 1:
        return errors[0]
    reasons = "; ".join(error.message for error in errors) or "no files were given"
    return ResultError(f"There is no result to report ({reasons})", "Run llmopt bench first.")
