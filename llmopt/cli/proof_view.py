"""How proofs are shown: who takes a checkpoint and with which kernel, and what it generated.

Knows what a proof says; tries nothing. The law: no line is wider than 100 columns.
"""

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from rich.console import Console
from rich.table import Table

from llmopt.cli.quantize_proof import Proof
from llmopt.formats.portability import Status, Verdict
from llmopt.quantize.options import QuantizeSummary

WIDTH = 100
_SHORT: Mapping[Status, str] = {
    "loads": "loads",
    "loads with a slower kernel": "slower",
    "refused": "no",
    "not checked": "?",
}


def print_proofs(proofs: Mapping[str, Proof], console: Console) -> None:
    """Print one checkpoint in detail, several as a table of verdicts, and what they generated."""
    judged = {label: proof for label, proof in proofs.items() if proof.verdicts}
    width = min(WIDTH, console.width)
    if len(judged) == 1:
        (proof,) = judged.values()
        console.print(_details(proof), width=width)
    elif judged:
        console.print(_overview(judged), width=width)
    for label, proof in proofs.items():
        if proof.smoke is not None:
            text = " ".join(proof.smoke.text.split())
            line = f"{label}: {proof.smoke.prompt} {text}"
            line = line if len(line) <= width else f"{line[: width - 3]}..."
            console.print(line, markup=False, highlight=False, soft_wrap=True)


def with_proof(summary: QuantizeSummary, proof: Proof | None) -> dict[str, Any]:
    """A summary with what was proved; nothing was where an earlier run had published it."""
    return asdict(summary) | {"proof": None if proof is None else asdict(proof)}


def _details(proof: Proof) -> Table:
    table = Table(header_style="bold", box=None, pad_edge=False)
    table.add_column("engine", no_wrap=True)
    table.add_column("verdict")
    table.add_column("kernels and remarks", overflow="fold")
    for verdict in proof.verdicts:
        remark = _remark(verdict)
        table.add_row(verdict.engine, verdict.status, remark)
    return table


def _remark(verdict: Verdict) -> str:
    kernels = ", ".join(verdict.kernels)
    return "; ".join(part for part in (kernels, verdict.reason) if part)


def _overview(proofs: Mapping[str, Proof]) -> Table:
    table = Table(header_style="bold", box=None, pad_edge=False)
    table.add_column("scheme", no_wrap=True)
    engines = [verdict.engine for verdict in next(iter(proofs.values())).verdicts]
    for engine in engines:
        table.add_column(engine, no_wrap=True)
    for label, proof in proofs.items():
        table.add_row(label, *(_SHORT[verdict.status] for verdict in proof.verdicts))
    return table
