"""Progress on standard error: a live bar with ETA at a terminal, a line now and then elsewhere.

Knows nothing of what is being done. The law: nothing is ever drawn on standard output.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import (
    BarColumn,
    Progress,
    SpinnerColumn,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

PLAIN_INTERVAL_S = 10.0  # between lines where there is no terminal
SHORT_STAGE_S = 0.5  # below this nobody waited


class LiveView:
    """A bar on standard error from the beginning of a `with` to its end, and lines above it."""

    def __init__(self, console: Console | None = None) -> None:
        self.console = console or Console(stderr=True)
        self._bar = _live_bar(self.console)

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._bar.stop()

    def _line(self, text: str, style: str = "dim") -> None:
        self.console.print(text, style=style, highlight=False, markup=False, soft_wrap=True)


class StageProgress(LiveView):
    """One stage after the other; implements `llmopt.bench.observer.Observer`.

    `with StageProgress() as progress: progress.stage_started("quantize");
    progress.stage_advanced(...)`.
    """

    def __init__(self, console: Console | None = None) -> None:
        super().__init__(console)
        self._task: TaskID | None = None
        self._stage = ""
        self._started = self._last_line = 0.0

    def stage_started(self, stage: str) -> None:
        """Begin a stage; its size becomes known when it first advances."""
        self._stage = stage
        self._started = self._last_line = time.monotonic()
        if not self._bar.disable:
            self._task = self._bar.add_task(stage, total=None, detail="")

    def stage_advanced(self, done: int, total: int, detail: str) -> None:
        """`done` of `total` units are finished."""
        now = time.monotonic()
        if self._task is not None:
            self._bar.update(self._task, completed=done, total=total, detail=detail)
        elif now - self._last_line >= PLAIN_INTERVAL_S:
            self._last_line = now
            self._line(f"{self._stage}: {done} of {total} {_eta(now - self._started, done, total)}")

    def stage_finished(self) -> None:
        """End the stage; one that took a while leaves a line that says how long."""
        seconds = time.monotonic() - self._started
        if self._task is not None:
            self._bar.remove_task(self._task)
            self._task = None
        if seconds >= SHORT_STAGE_S:
            self._line(f"{self._stage}: {seconds:.1f} s")

    def cell_failed(self, cell_id: str, reason: str) -> None:
        """Say at once what will be a row without numbers."""
        self._line(f"{cell_id} failed: {reason}")

    @contextmanager
    def stage(self, name: str) -> Iterator[Callable[[str, float], None]]:
        """One stage; what it yields takes what is being done and the share that is done."""
        self.stage_started(name)
        try:
            yield lambda what, share: self.stage_advanced(round(100 * share), 100, what)
        finally:
            self.stage_finished()


def _eta(elapsed_s: float, done: int, total: int) -> str:
    if done <= 0:
        return f"({elapsed_s:.0f} s so far)"
    return f"({elapsed_s:.0f} s, about {elapsed_s * (total - done) / done:.0f} s left)"


def _live_bar(console: Console) -> Progress:
    """A bar with ETA whose tasks have a field `detail`; nothing is drawn without a terminal."""
    return Progress(
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(bar_width=24),
        TextColumn("{task.percentage:>3.0f}%"),
        TimeElapsedColumn(),
        TextColumn("ETA"),
        TimeRemainingColumn(),
        TextColumn("[dim]{task.fields[detail]}"),
        console=console,
        transient=True,
        disable=not console.is_terminal,
    )
