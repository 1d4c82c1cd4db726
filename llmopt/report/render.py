"""From result files to a report in one of the formats, with or without the picture.

Knows nothing about the layout of any format. The law: the formats say the same; only CSV leaves
the notes out, because it is for programs.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal, TextIO

from llmopt.errors import ResultError
from llmopt.report.attribution import explained_json, write_attribution
from llmopt.report.choice import EVERYTHING, Choice
from llmopt.report.export import to_csv, to_json_text
from llmopt.report.latex import to_latex
from llmopt.report.markdown import to_markdown
from llmopt.report.plots.catalogue import PictureName, write_plot
from llmopt.report.report import Report, make_report, shown_rows
from llmopt.report.terminal import print_report
from llmopt.results.kernels import KernelResult
from llmopt.results.schema import CellResult

Format = Literal["terminal", "markdown", "csv", "json", "latex", "html"]

_TEXTS: dict[Format, Callable[[Report], str]] = {
    "markdown": to_markdown,
    "csv": to_csv,
    "json": to_json_text,
    "latex": to_latex,
}


def render(
    results: Sequence[CellResult],
    errors: Sequence[ResultError],
    format: Format,
    out: TextIO,
    plot: str | Path | None = None,
    explain: bool = False,
    choice: Choice = EVERYTHING,
    picture: PictureName = "tradeoff",
    kernels: Sequence[KernelResult] = (),
) -> Path | None:
    """Write the report to `out`, and the picture to `plot` if it is given.

    `errors` are the files that could not be read; they become notes. With `explain`, terminal,
    Markdown and JSON say behind the notes where the time of each row went; the page always does.
    `kernels` are in pictures only. Returns the path of the picture; None if none was asked for or
    there is nothing to draw. Raises ResultError if there is nothing to report, UsageError for a
    choice that makes no sense, and OutputError if the picture cannot be written.
    """
    if not results and not kernels:
        raise nothing_to_report(errors)
    if not results and plot is None and format != "html":
        raise ResultError(
            "These are benchmarks of kernels, which have no rows",
            "Add --picture kernels --png FILE, or --format html.",
        )
    report = make_report(results, errors, choice)
    shown, _ = shown_rows(results, choice)
    if format == "terminal":
        print_report(report, out)
    elif format == "html":
        from llmopt.report.html_page import to_html

        out.write(to_html(report, results, kernels))
    elif explain and format == "json":
        out.write(explained_json(to_json_text(report), shown))
    else:
        out.write(_TEXTS[format](report))
    if explain and format in ("terminal", "markdown"):
        out.write("\n")
        write_attribution(shown, out, markdown=format == "markdown")
    return None if plot is None else write_plot(report, plot, picture, results, kernels)


def nothing_to_report(errors: Sequence[ResultError]) -> ResultError:
    """Why there is no result, from what was wrong with each file."""
    if len(errors) == 1:
        return errors[0]
    reasons = "; ".join(error.message for error in errors) or "no files were given"
    return ResultError(f"There is no result to report ({reasons})", "Run llmopt bench first.")
