"""Energy counters of this machine, where they can be read: NVML for GPUs, RAPL for processors.

Knows nothing about what the energy was spent on. The law: only hardware counters are read, nothing
is estimated from a power limit; a machine without a readable counter has no meter.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from llmopt.hardware.nvml import open_gpu

_POWERCAP = Path("/sys/class/powercap")
_MICROJOULES = 1e-6
_MILLIJOULES = 1e-3


@dataclass(frozen=True, slots=True)
class Energy:
    """Energy since a meter was made (fields as in the schema of result files)."""

    joules: float
    source: str
    covers: str


class EnergyMeter:
    """Counts from the moment it is made."""

    def __init__(self, source: str, covers: str, read_joules: Callable[[], float]) -> None:
        self._source = source
        self._covers = covers
        self._read_joules = read_joules
        self._start = read_joules()

    def read(self) -> Energy:
        """The energy since the start."""
        return Energy(self._read_joules() - self._start, self._source, self._covers)


def energy_meter(device: str, powercap: Path = _POWERCAP) -> EnergyMeter | None:
    """A meter for "cuda", "cuda:N" or "cpu" (all packages); None where nothing is readable.

    RAPL's counters wrap after some minutes of full load, at their `max_energy_range_uj`: read the
    meter at least every half minute of a longer run.
    """
    return _nvml_meter(device) if device.startswith("cuda") else _rapl_meter(powercap)


def _nvml_meter(device: str) -> EnergyMeter | None:
    gpu = open_gpu(device)
    if gpu is None:
        return None

    def joules() -> float:
        return float(gpu.nvml.nvmlDeviceGetTotalEnergyConsumption(gpu.handle)) * _MILLIJOULES

    try:
        return EnergyMeter("nvml", "GPU only", joules)
    except gpu.nvml.NVMLError:
        return None


def _rapl_meter(powercap: Path) -> EnergyMeter | None:
    packages = [path for path in sorted(powercap.glob("intel-rapl:*")) if _is_package(path)]
    try:
        counters = [_RaplCounter(path) for path in packages]
    except (OSError, ValueError):
        return None  # since 2020 kernels let only root read them
    return EnergyMeter("rapl", "processor packages", lambda: _sum(counters)) if counters else None


def _is_package(path: Path) -> bool:
    """Whether the zone is a whole processor: "intel-rapl:0", not its part "intel-rapl:0:1"."""
    return path.name.count(":") == 1


class _RaplCounter:
    """One counter that wraps, as one that does not."""

    def __init__(self, zone: Path) -> None:
        self._path = zone / "energy_uj"
        self._range = int((zone / "max_energy_range_uj").read_text())
        self._last = int(self._path.read_text())
        self._wrapped = 0

    def joules(self) -> float:
        now = int(self._path.read_text())
        if now < self._last:
            self._wrapped += self._range
        self._last = now
        return (now + self._wrapped) * _MICROJOULES


def _sum(counters: Sequence[_RaplCounter]) -> float:
    return sum(counter.joules() for counter in counters)
