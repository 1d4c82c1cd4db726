"""Traces: when requests came, and how long they were, in the formats that are published.

Knows nothing about prompts. The law: times begin at zero and ascend; a row that cannot be read is
an error with its line, never skipped.
"""

import csv
import json
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from llmopt.bench.trace_files import where_to_get
from llmopt.errors import UsageError
from llmopt.results.store import read_result

MOONCAKE_BLOCK = 512  # tokens behind one hash id (Qin et al. 2024, the trace's README)
_AZURE_COLUMNS = ("TIMESTAMP", "ContextTokens", "GeneratedTokens")


@dataclass(frozen=True, slots=True)
class TracedRequest:
    """One row. `block_ids`: which blocks of `MOONCAKE_BLOCK` tokens the prompt begins with."""

    at_s: float
    prompt_tokens: int
    output_tokens: int
    block_ids: tuple[int, ...] = ()


def read_trace(path: str | Path) -> list[TracedRequest]:
    """Read a trace by its suffix.

    .csv: Azure's LLM inference trace (TIMESTAMP, ContextTokens, GeneratedTokens). .jsonl:
    Mooncake's (timestamp in ms, input_length, output_length, hash_ids). .json: a result file of
    ours, its first run. Requests without a prompt or an output are left out, as
    nothing can be asked of a model by them. Raises UsageError, or ResultError for the last.
    """
    path = Path(path)
    readers = {".csv": _read_azure, ".jsonl": _read_mooncake, ".json": _read_result}
    if path.suffix not in readers:
        raise UsageError(
            f"the trace {path} has the suffix {path.suffix!r}", f"Use {', '.join(readers)}."
        )
    try:
        rows = sorted(readers[path.suffix](path), key=lambda row: row.at_s)
    except OSError as error:
        raise UsageError(
            f"the trace {path} cannot be read ({error.strerror})", where_to_get(path)
        ) from error
    rows = [row for row in rows if row.prompt_tokens > 0 and row.output_tokens > 0]
    if not rows:
        raise UsageError(f"the trace {path} has no requests", "Use another file.")
    first = rows[0].at_s
    return [
        TracedRequest(row.at_s - first, row.prompt_tokens, row.output_tokens, row.block_ids)
        for row in rows
    ]


def _read_azure(path: Path) -> Iterator[TracedRequest]:
    with path.open(encoding="utf-8", newline="") as stream:
        rows = csv.DictReader(stream)
        missing = [name for name in _AZURE_COLUMNS if name not in (rows.fieldnames or ())]
        if missing:
            raise UsageError(
                f"{path}:1: the trace lacks the columns {', '.join(missing)}",
                f"It needs {', '.join(_AZURE_COLUMNS)}.",
            )
        for row in rows:
            try:
                at = datetime.fromisoformat(row["TIMESTAMP"])
                sizes = int(row["ContextTokens"]), int(row["GeneratedTokens"])
            except (TypeError, ValueError) as error:
                raise _bad_row(path, rows.line_num, error) from error
            yield TracedRequest(at.replace(tzinfo=at.tzinfo or UTC).timestamp(), *sizes)


def _read_mooncake(path: Path) -> Iterator[TracedRequest]:
    with path.open(encoding="utf-8") as stream:
        for number, line in enumerate(stream, start=1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
                yield TracedRequest(
                    float(row["timestamp"]) / 1000,
                    int(row["input_length"]),
                    int(row["output_length"]),
                    tuple(int(block) for block in row.get("hash_ids", ())),
                )
            except (TypeError, ValueError, KeyError, AttributeError) as error:
                raise _bad_row(path, number, error) from error


def _read_result(path: Path) -> Iterator[TracedRequest]:
    result = read_result(path)
    for run in result.runs[:1]:
        for request in run.requests:
            yield TracedRequest(
                request.scheduled_s,
                request.num_prompt_tokens_sent or request.num_prompt_tokens,
                request.max_tokens or request.num_output_tokens,
            )


def _bad_row(path: Path, line: int, error: Exception) -> UsageError:
    what = f"{type(error).__name__}: {error}"
    return UsageError(f"{path}:{line}: not a row of a trace ({what})", "Mend or remove the line.")
