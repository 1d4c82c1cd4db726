"""The machine while a run is measured: clocks, heat, energy, memory.

Knows nothing about requests. The law: watching costs the run nothing that could be seen in it, so
the host's memory is looked at when a request ends, and not by a thread of its own.
"""

from dataclasses import asdict, replace

import torch

from llmopt.hardware.clocks import clock_state
from llmopt.hardware.energy import energy_meter
from llmopt.hardware.memory import host_bytes
from llmopt.results.schema import EnergyRecord, MachineState, RunRecord


class MachineWatch:
    """Watches the machine of `device` from the moment it is made, or from the last `restart`."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self.restart()

    def restart(self) -> None:
        """Forget what was seen: the warm-up is over."""
        self._before = self._state()
        self._peak_bytes = 0
        if self._device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self._device)
        self._meter = energy_meter(self._device.type)
        self.look()

    def look(self) -> None:
        """Look at the memory and the energy counter, which may wrap if it is not read for long."""
        if self._device.type == "cuda":
            now = int(torch.cuda.max_memory_allocated(self._device))
        else:
            now = host_bytes()
        self._peak_bytes = max(self._peak_bytes, now)
        if self._meter is not None:
            self._meter.read()

    def complete(self, run: RunRecord) -> RunRecord:
        """The run with what was seen since the start."""
        self.look()
        energy = None if self._meter is None else EnergyRecord(**asdict(self._meter.read()))
        return replace(
            run,
            peak_memory_bytes=self._peak_bytes,
            energy=energy,
            machine_before=self._before,
            machine_after=self._state(),
        )

    def _state(self) -> MachineState:
        return MachineState(**asdict(clock_state(self._device.type)))
