"""The machine while a run is measured: clocks, heat, energy, memory.

Knows nothing about requests. The law: watching costs the run nothing that could be seen in it, so
the host's memory is looked at when a request ends, and not by a thread of its own; the processes
that another runtime consists of are listed before the run and after it.
"""

from collections.abc import Sequence
from dataclasses import asdict, replace

import torch

from llmopt.hardware.children import descendants, memory_of
from llmopt.hardware.clocks import clock_state
from llmopt.hardware.energy import energy_meter
from llmopt.hardware.memory import host_bytes
from llmopt.results.schema import EnergyRecord, MachineState, RunRecord


class MachineWatch:
    """Watches the machine of `device` from the moment it is made, or from the last `restart`.

    of_children: the memory is that of the processes which this one started; not known on a GPU
    """

    def __init__(self, device: torch.device, *, of_children: bool = False) -> None:
        self._device = device
        self._of_children = of_children
        self.restart()

    def restart(self) -> None:
        """Forget what was seen: the warm-up is over."""
        self._before = self._state()
        self._peak_bytes: int | None = None
        self._children = self._list_children()
        if self._device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self._device)
        self._meter = energy_meter(str(self._device))
        self.look()

    def look(self) -> None:
        """Look at the memory and the energy counter, which may wrap if it is not read for long."""
        now = self._memory_bytes()
        if now is not None:
            self._peak_bytes = max(now, self._peak_bytes or 0)
        if self._meter is not None:
            self._meter.read()

    def complete(self, run: RunRecord) -> RunRecord:
        """The run with what was seen since the start."""
        self._children = self._list_children()
        self.look()
        energy = None if self._meter is None else EnergyRecord(**asdict(self._meter.read()))
        return replace(
            run,
            peak_memory_bytes=self._peak_bytes,
            energy=energy,
            machine_before=self._before,
            machine_after=self._state(),
        )

    def _list_children(self) -> Sequence[int]:
        return descendants() if self._of_children else ()

    def _memory_bytes(self) -> int | None:
        is_gpu = self._device.type == "cuda"
        if self._of_children:
            return None if is_gpu else memory_of(self._children)
        return int(torch.cuda.max_memory_allocated(self._device)) if is_gpu else host_bytes()

    def _state(self) -> MachineState:
        return MachineState(**asdict(clock_state(str(self._device))))
