"""How a quantization looks at a terminal: progress while it runs, a table when it is done.

Knows what the quantizers report; computes nothing.
"""

import time
from collections.abc import Sequence

from rich.console import Console
from rich.progress import TaskID
from rich.table import Table

from llmopt.cli.progress import PLAIN_INTERVAL_S, LiveView
from llmopt.hardware.memory import host_bytes
from llmopt.quantize.options import ModuleFinished, QuantizeSummary


class QuantizeView(LiveView):
    """Draws a run on standard error (`QuantizeObserver`); `damping`: where GPTQ begins.

    At a terminal a live line: block, module, loss, damping, memory, time that is left. Elsewhere
    a line now and then. Modules whose damping had to be raised are named either way.
    """

    def __init__(self, damping: float, console: Console | None = None) -> None:
        super().__init__(console)
        self._damping = damping
        self._done = 0
        self._task: TaskID | None = None
        self._stage = ""
        self._last_line = time.monotonic()

    def stage_started(self, stage: str) -> None:
        """Show what is being done."""
        self._stage = stage
        if self._task is None:
            self._task = self._bar.add_task(stage, total=None, detail="")
        self._bar.update(self._task, description=stage, detail="")

    def blocks_started(self, done: int, total: int) -> None:
        """Give the bar its size."""
        self._done = done
        if self._task is not None:
            self._bar.reset(self._task, total=total, completed=done)

    def module_finished(self, event: ModuleFinished) -> None:
        """Advance, and name the module if its damping was raised."""
        self._done += 1
        record = event.record
        where = f"block {event.block + 1} of {event.num_blocks}"
        loss = "" if record.relative_loss is None else f", loss {record.relative_loss:.2%}"
        damping = "" if record.damping is None else f", damping {record.damping:g}"
        detail = f"{record.name}{loss}{damping}, {host_bytes() / 1e9:.2f} GB"
        if self._task is not None:
            what = f"{event.scheme}: {where}"
            self._bar.update(self._task, description=what, completed=self._done, detail=detail)
        now = time.monotonic()
        if self._bar.disable and now - self._last_line >= PLAIN_INTERVAL_S:
            self._last_line = now
            self._line(f"{event.scheme}: {where}: {detail}")
        if record.damping is not None and record.damping > self._damping:
            self._line(
                f"{event.scheme}: {record.name} needed a damping of {record.damping:g}", "yellow"
            )

    def block_finished(self, block: int, num_blocks: int) -> None:
        """Nothing is drawn for it."""

    def note(self, text: str) -> None:
        """Leave a line."""
        self._line(text, "default")


def summary_table(summaries: Sequence[QuantizeSummary]) -> Table:
    """Return one row for each checkpoint."""
    table = Table(title=None, header_style="bold")
    table.add_column("scheme", no_wrap=True)
    columns = ("bits/weight", "size", "mean loss", "seconds", "peak memory")
    for column in columns:
        table.add_column(column, justify="right", no_wrap=True)
    for summary in summaries:
        loss = mean_relative_loss(summary)
        table.add_row(
            summary.scheme,
            f"{summary.bits_per_weight:.3f}",
            f"{summary.file_bytes / 1e6:,.1f} MB",
            "" if loss is None else f"{loss:.2%}",
            f"{summary.seconds:.1f}",
            memory_text(summary),
        )
    return table


def mean_relative_loss(summary: QuantizeSummary) -> float | None:
    """Return the mean over the modules of the error's share of their outputs; None without any."""
    losses = [m.relative_loss for m in summary.modules if m.relative_loss is not None]
    return sum(losses) / len(losses) if losses else None


def memory_text(summary: QuantizeSummary) -> str:
    """Return the peak memory, on the host and, if there is one, on the device."""
    peak = summary.peak_memory
    host = f"{peak.host_bytes / 1e9:.2f} GB"
    return host if peak.device_bytes is None else f"{host} + {peak.device_bytes / 1e9:.2f} GB GPU"
