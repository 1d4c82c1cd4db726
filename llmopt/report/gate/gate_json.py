"""The verdict as JSON, for programs. The law: all digits; a number that JSON has not is text."""

import json
from dataclasses import asdict

from llmopt.report.gate.verdict import GateReport
from llmopt.results.codec import to_json


def to_json_text(report: GateReport) -> str:
    """Return one document: verdict, exit code, comparisons and notes."""
    document = {
        "verdict": report.verdict,
        "exit_code": report.exit_code,
        "comparisons": [to_json(asdict(row)) for row in report.rows],
        "notes": list(report.notes),
    }
    return json.dumps(document, indent=2, ensure_ascii=False) + "\n"
