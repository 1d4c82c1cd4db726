"""The peak memory of the processes that this one started.

Knows nothing of what they do. The law: the measure is `host_bytes`, as for this process itself, so
that the two can be compared.
"""

import contextlib
import threading
from types import TracebackType
from typing import Self

import psutil

from llmopt.hardware.memory import host_bytes

_INTERVAL_S = 0.05


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
        process = psutil.Process()
        while not self._stop.wait(_INTERVAL_S):
            total = 0
            for child in process.children(recursive=True):
                with contextlib.suppress(psutil.Error):  # it may have ended meanwhile
                    total += host_bytes(child.pid)
            if total:
                self.peak_bytes = max(total, self.peak_bytes or 0)
