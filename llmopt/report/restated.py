"""The same runs in the words of another tool: its names, its formulas, from our raw events.

Knows nothing about layout beyond lines of text. The law: rows that failed are said to have failed,
and every number is of one run.
"""

from collections.abc import Sequence

from llmopt.bench.peer_definitions import restate
from llmopt.report.rows import newest
from llmopt.results.schema import CellResult


def restated(results: Sequence[CellResult], tool: str) -> str:
    """Lines of text for "vllm", "guidellm", "aiperf" or "mlperf". Raises UsageError for others."""
    lines = []
    for result in newest(results):
        if result.load is None:
            continue
        lines.append(f"{result.cell_id}, as {tool} defines it:")
        if result.error is not None:
            lines.append(f"  failed: {result.error}")
        is_chat = result.backend.settings.get("endpoint") == "chat"
        for run in result.runs:
            lines.append(f"  run {run.repeat + 1}")
            numbers = restate(run, tool, is_chat=is_chat)
            lines += [f"    {name:42} {value:14.6g}" for name, value in numbers.items()]
    return "\n".join(lines) + "\n"
