"""The answer of `llmopt report --recommend`."""

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, TextIO

from llmopt.cli.report_options import OutputFormat
from llmopt.errors import UsageError

if TYPE_CHECKING:
    from llmopt.report.bounds import Bounds
    from llmopt.report.choice import Choice
    from llmopt.report.sources import Sources


def write_recommendation(
    sources: "Sources",
    choice: "Choice",
    bounds: "Bounds",
    output_format: OutputFormat,
    out: TextIO,
) -> None:
    """Write which cell to ship, as lines or as JSON. Raises UsageError for another format."""
    from llmopt.report.recommend import recommend
    from llmopt.report.recommend_text import recommendation_lines, recommendation_values
    from llmopt.report.report import shown_rows

    results, rows = shown_rows(sources.results, choice)
    found = recommend(results, rows, bounds)
    unread = [f"not read: {error}" for error in sources.errors]
    if output_format is OutputFormat.JSON:
        document = {"recommendations": [recommendation_values(each) for each in found]}
        out.write(json.dumps(document | {"notes": unread}, indent=2, ensure_ascii=False) + "\n")
    elif output_format is OutputFormat.TERMINAL:
        out.write(_text([*recommendation_lines(found), *unread]))
    else:
        raise UsageError(
            f"A recommendation has no form {output_format.value!r}", "Use terminal or json."
        )


def _text(lines: Sequence[str]) -> str:
    return "".join(f"{line}\n" for line in lines)
