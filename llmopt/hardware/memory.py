"""The peak memory of a stretch of work, on the host and on a CUDA device.

Knows nothing of what is done. The law: memory that the system could take back at any time, such as
the pages of a mapped file, does not count.
"""

import threading
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

import psutil
import torch

_INTERVAL_S = 0.01
_PRIVATE_FIELDS = ("RssAnon:", "RssShmem:")


@dataclass(frozen=True, slots=True)
class PeakMemory:
    """The largest amounts that were in use; device_bytes is None without a CUDA device.

    host_before_bytes: what the process held before the work began
    """

    host_bytes: int
    device_bytes: int | None
    host_before_bytes: int | None = None


def host_bytes(process: int | None = None) -> int:
    """Return the memory of a process, by default this one: without mapped files on Linux, all
    that is resident elsewhere. Raises `psutil.Error` where there is no such process.
    """
    try:
        lines = Path("/proc", str(process or "self"), "status").read_text().splitlines()
    except OSError:
        return int(psutil.Process(process).memory_info().rss)
    sizes = [int(line.split()[1]) << 10 for line in lines if line.startswith(_PRIVATE_FIELDS)]
    return sum(sizes) if sizes else int(psutil.Process(process).memory_info().rss)


class MemoryMeter:
    """Samples the memory of this process every 10 ms while its `with` block runs.

    Work that is done inside `section(name)` counts for that section, all other work for everyone.
    """

    def __init__(self, device: torch.device) -> None:
        self._on_gpu = device.type == "cuda"
        self._device = device
        self._section: str | None = None
        self._before = 0
        self._host: defaultdict[str | None, int] = defaultdict(int)
        self._gpu: defaultdict[str | None, int] = defaultdict(int)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="memory meter", daemon=True)

    def __enter__(self) -> Self:
        self._before = host_bytes()
        self._switch(None)
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

    @contextmanager
    def section(self, name: str) -> Iterator[None]:
        """Count what happens inside for `name`."""
        outer = self._section
        self._switch(name)
        try:
            yield
        finally:
            self._switch(outer)

    def peak(self, section: str | None = None) -> PeakMemory:
        """The peaks so far of a section's work and of that for everyone, or without a name of all
        work.
        """
        self._switch(self._section)
        names = [None, section] if section is not None else list(self._host)
        host = max(self._host[name] for name in names)
        device = max(self._gpu[name] for name in names) if self._on_gpu else None
        return PeakMemory(host, device, self._before)

    def _switch(self, section: str | None) -> None:
        self._sample()
        if self._on_gpu:
            peak = int(torch.cuda.max_memory_allocated(self._device))
            self._gpu[self._section] = max(self._gpu[self._section], peak)
            torch.cuda.reset_peak_memory_stats(self._device)
        self._section = section

    def _sample(self) -> None:
        section, now = self._section, host_bytes()
        self._host[section] = max(self._host[section], now)

    def _run(self) -> None:
        while not self._stop.wait(_INTERVAL_S):
            self._sample()
