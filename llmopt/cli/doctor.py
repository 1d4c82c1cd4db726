"""`llmopt doctor`."""

from typing import Annotated

import typer


def doctor(
    json: Annotated[bool, typer.Option("--json", help="Print the findings as JSON.")] = False,
) -> None:
    """Show what is usable on this machine, and the command that adds what is not."""
    from llmopt.cli.output import print_json
    from llmopt.hardware.doctor import diagnose

    findings = diagnose()
    if json:
        print_json(findings)
        return
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("", "part", "what was found", "to add it"):
        table.add_column(column, overflow="fold")
    marks = {"ok": "[green]ok[/]", "missing": "[yellow]missing[/]", "off": "[dim]off[/]"}
    for finding in findings:
        table.add_row(
            marks[finding.state],
            finding.name,
            escape(finding.detail),
            escape(finding.command or ""),
        )
    Console().print(table)
