"""Who watches a sweep: the command line draws progress from these calls, tests record them.

The law: watching changes nothing; a sweep calls, and never asks.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol


class Observer(Protocol):
    """Hears how a sweep goes on. One stage is open at a time."""

    def stage_started(self, stage: str) -> None:
        """A stage begins, such as "quantize gptq-w4g64" or "measure quality"."""

    def stage_advanced(self, done: int, total: int, detail: str) -> None:
        """`done` of `total` units of the open stage are finished; `detail` says what is next."""

    def stage_finished(self) -> None:
        """The open stage has ended, well or not."""

    def cell_failed(self, cell_id: str, reason: str) -> None:
        """A cell becomes a result with an error; the others go on."""


class SilentObserver:
    """Draws nothing."""

    def stage_started(self, stage: str) -> None:
        """Do nothing."""

    def stage_advanced(self, done: int, total: int, detail: str) -> None:
        """Do nothing."""

    def stage_finished(self) -> None:
        """Do nothing."""

    def cell_failed(self, cell_id: str, reason: str) -> None:
        """Do nothing."""


@contextmanager
def open_stage(observer: Observer, name: str) -> Iterator[None]:
    """One stage, as the observer sees it."""
    observer.stage_started(name)
    try:
        yield
    finally:
        observer.stage_finished()
