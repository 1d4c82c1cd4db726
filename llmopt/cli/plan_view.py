"""How a plan is shown: a table of phases, one of checkpoints, and what disk and memory it takes.

Knows what the planner reports; computes nothing but sums.
"""

from rich.console import Console
from rich.table import Table

from llmopt.cli.output import print_json
from llmopt.quantize.plan import Plan


def print_plan(plan: Plan, *, json: bool) -> None:
    """Print a plan on standard output."""
    if json:
        print_json(plan)
        return
    console = Console()
    if plan.seconds is not None:
        console.print(_phases(plan))
    console.print(_outputs(plan))
    for line in _lines(plan):
        console.print(line, highlight=False, soft_wrap=True)


def _phases(plan: Plan) -> Table:
    table = Table(header_style="bold")
    table.add_column("phase")
    table.add_column("seconds", justify="right")
    for phase, seconds in plan.phases.items():
        table.add_row(phase, f"{seconds:,.1f}")
    table.add_section()
    table.add_row("all", f"{plan.seconds:,.1f}")
    return table


def _outputs(plan: Plan) -> Table:
    table = Table(header_style="bold")
    table.add_column("scheme", no_wrap=True)
    for column in ("bits/weight", "size", "seconds of its own"):
        table.add_column(column, justify="right")
    for output in plan.outputs:
        seconds = "unknown" if output.seconds is None else f"{output.seconds:,.1f}"
        size = f"{output.file_bytes / 1e6:,.1f} MB"
        table.add_row(output.scheme, f"{output.bits_per_weight:.3f}", size, seconds)
    return table


def _lines(plan: Plan) -> list[str]:
    footprint = plan.footprint
    lines = []
    if plan.peak is not None:
        host = f"{plan.peak.host_bytes / 1e9:.2f} GB of main memory"
        device = plan.peak.device_bytes
        measured = host if device is None else f"{host}, {device / 1e9:.2f} GB on the device"
        share = f"{plan.measured_blocks} of {plan.num_blocks} blocks"
        lines.append(f"peak memory: {measured}, measured on {share}")
    lines.append(
        f"by arithmetic: {footprint.device_bytes / 1e9:.2f} GB on the compute device (weights of "
        f"the block {footprint.blocks / 1e9:.2f}, the layer at work {footprint.layer / 1e9:.2f}, "
        f"activations {footprint.activations / 1e9:.2f}), and {footprint.hidden_states / 1e9:.2f} "
        f"GB of hidden states of {plan.num_tokens:,} tokens in main memory"
    )
    lines.append(
        f"disk: {plan.output_bytes / 1e9:.2f} GB of checkpoints, up to "
        f"{plan.journal_bytes / 1e9:.2f} GB of journal until the end, "
        f"{plan.cache_bytes / 1e9:.2f} GB of cached statistics"
    )
    if plan.seconds is None:
        lines.append("time: unknown without the weights")
    return lines
