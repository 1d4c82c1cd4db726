"""The memory of the processes that this one started, and its peak.

Knows nothing of what they do. The law: the measure is `host_bytes`, as for this process itself, so
that the two can be compared.
"""

import contextlib
import threading
from collections.abc import Iterable
from types import TracebackType
from typing import Self

import psutil

from llmopt.hardware.memory import host_bytes

_INTERVAL_S = 0.05


def descendants() -> list[int]:
    """The ids of all processes that this one started, and of those that they did."""
    return [process.pid for process in psutil.Process().children(recursive=True)]


def memory_of(processes: Iterable[int]) -> int:
    """Bytes of all of them together; one that has ended meanwhile has none."""
    total = 0
    for process in processes:
        with contextlib.suppress(psutil.Error):
            total += host_bytes(process)
    return total


class ChildrenMeter:
    """Samples the memory of all descendants of this process every 50 ms while its `with` block
    runs; `peak_bytes` is the largest sum seen, None where there was no descendant.
    """

    def __init__(self) -> None:
        self.peak_bytes: int | None = None
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="children meter", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._stop.wait(_INTERVAL_S):
            total = memory_of(descendants())
            if total:
                self.peak_bytes = max(total, self.peak_bytes or 0)
