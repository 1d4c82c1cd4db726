"""What drifts while a machine works: clock, temperature, throttling.

Knows nothing about measurements. The law: what cannot be read is None; nothing is changed.
"""

from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

from llmopt.hardware.nvml import open_gpu

_CPU = Path("/sys/devices/system/cpu")
_THERMAL = Path("/sys/class/thermal")
_KILOHERTZ_PER_MEGAHERTZ = 1000
# NVML: brakes for heat and power; the power cap, 0x04, is normal under full load
_SLOWDOWNS = (0x08, 0x20, 0x40, 0x80)


@dataclass(frozen=True, slots=True)
class ClockState:
    """The state at one moment (fields as in the schema of result files)."""

    clock_mhz: float | None
    temperature_c: float | None
    throttled: bool | None


def clock_state(device: str, cpu: Path = _CPU, thermal: Path = _THERMAL) -> ClockState:
    """The state of "cuda", "cuda:N" or "cpu" (the mean of its cores' clocks)."""
    if device.startswith("cuda"):
        return _gpu_state(device)
    clocks = [_number(path) for path in cpu.glob("cpu[0-9]*/cpufreq/scaling_cur_freq")]
    known = [clock for clock in clocks if clock is not None]
    heats = [_number(path) for path in thermal.glob("thermal_zone*/temp")]
    warmest = max((heat for heat in heats if heat is not None), default=None)
    return ClockState(
        clock_mhz=fmean(known) / _KILOHERTZ_PER_MEGAHERTZ if known else None,
        temperature_c=None if warmest is None else warmest / 1000,
        throttled=None,
    )


def _number(path: Path) -> float | None:
    try:
        return float(path.read_text())
    except (OSError, ValueError):
        return None


def _gpu_state(device: str) -> ClockState:
    gpu = open_gpu(device)
    if gpu is None:
        return ClockState(None, None, None)
    nvml, handle = gpu.nvml, gpu.handle
    try:
        reasons = int(nvml.nvmlDeviceGetCurrentClocksThrottleReasons(handle))
        return ClockState(
            clock_mhz=float(nvml.nvmlDeviceGetClockInfo(handle, nvml.NVML_CLOCK_SM)),
            temperature_c=float(nvml.nvmlDeviceGetTemperature(handle, nvml.NVML_TEMPERATURE_GPU)),
            throttled=any(reasons & reason for reason in _SLOWDOWNS),
        )
    except nvml.NVMLError:
        return ClockState(None, None, None)
