"""The verdict in the summary of a GitHub Actions step.

The service names a file in GITHUB_STEP_SUMMARY, to which Markdown is appended (documentation of
GitHub Actions, "Adding a job summary"). Knows nothing about the verdict.
"""

from collections.abc import Mapping
from pathlib import Path

from llmopt.errors import OutputError
from llmopt.report.gate.pr_comment import to_markdown
from llmopt.report.gate.verdict import GateReport

VARIABLE = "GITHUB_STEP_SUMMARY"


def append_summary(report: GateReport, variables: Mapping[str, str]) -> Path | None:
    """Append the verdict where the service asks for it; None where there is no such service.

    Raises OutputError.
    """
    name = variables.get(VARIABLE)
    if not name:
        return None
    path = Path(name)
    try:
        with path.open("a", encoding="utf-8") as stream:
            stream.write(to_markdown(report) + "\n")
    except OSError as error:
        raise OutputError(
            f"{VARIABLE} names {path}, which cannot be written ({error.strerror})",
            f"Unset {VARIABLE}, or name a file.",
        ) from error
    return path
