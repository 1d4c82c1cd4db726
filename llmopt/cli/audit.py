"""`llmopt audit`."""

from pathlib import Path
from typing import Annotated

import typer

_INVALID = 1


def audit(
    files: Annotated[
        list[Path],
        typer.Argument(help="Result files of vllm bench, GuideLLM, AIPerf or llama-bench."),
    ],
) -> None:
    """Judge result files of other tools by the checks that llmopt's own results must pass.

    What a file has no data for is listed, not passed. The exit code is 1 if a check failed.

    Examples:

        llmopt audit vllm-bench.json

        llmopt audit benchmarks.json profile_export.jsonl
    """
    from llmopt.bench.audit import audit_file

    failed = False
    for path in files:
        for found in audit_file(path):
            failed |= not found.passed
            verdict = "every check that applies passed" if found.passed else "INVALID"
            typer.echo(f"{path}: {found.tool}, {found.title}: {verdict}")
            for check in found.checks:
                typer.echo(f"  {'ok  ' if check.passed else 'FAIL'} {check.name}: {check.detail}")
            for line in found.missing:
                typer.echo(f"  ?    {line}")
    if failed:
        raise typer.Exit(_INVALID)
