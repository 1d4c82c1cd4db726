"""Clocks and temperatures are read where they are, and None where not."""

import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from llmopt.hardware.clocks import ClockState, clock_state


def test_a_cpu_is_the_mean_of_its_cores(tmp_path: Path) -> None:
    for core, kilohertz in ((0, 2_000_000), (1, 3_000_000)):
        folder = tmp_path / f"cpu{core}" / "cpufreq"
        folder.mkdir(parents=True)
        (folder / "scaling_cur_freq").write_text(f"{kilohertz}\n")
    for zone, heat in ((0, 45_000), (1, 71_500)):
        (tmp_path / f"thermal_zone{zone}").mkdir()
        (tmp_path / f"thermal_zone{zone}" / "temp").write_text(f"{heat}\n")
    assert clock_state("cpu", tmp_path, tmp_path) == ClockState(2500.0, 71.5, None)


def test_what_cannot_be_read_is_none(tmp_path: Path) -> None:
    assert clock_state("cpu", tmp_path, tmp_path) == ClockState(None, None, None)


@pytest.mark.parametrize(("reasons", "throttled"), [(0x0, False), (0x4, False), (0x44, True)])
def test_a_gpu_brakes_for_heat_and_not_for_its_power_cap(
    monkeypatch: pytest.MonkeyPatch, reasons: int, throttled: bool
) -> None:
    nvml = SimpleNamespace(
        NVMLError=RuntimeError,
        NVML_CLOCK_SM=1,
        NVML_TEMPERATURE_GPU=0,
        nvmlInit=lambda: None,
        nvmlDeviceGetHandleByUUID=lambda uuid: uuid,
        nvmlDeviceGetCurrentClocksThrottleReasons=lambda _: reasons,
        nvmlDeviceGetClockInfo=lambda _, kind: 1980,
        nvmlDeviceGetTemperature=lambda _, kind: 64,
    )
    monkeypatch.setattr("llmopt.hardware.nvml.gpu_uuid", lambda device: "GPU-1")
    monkeypatch.setitem(sys.modules, "pynvml", nvml)
    assert clock_state("cuda") == ClockState(1980.0, 64.0, throttled)


def test_without_nvml_a_gpu_has_no_state(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("llmopt.hardware.nvml.gpu_uuid", lambda device: "GPU-1")
    monkeypatch.setitem(sys.modules, "pynvml", None)
    assert clock_state("cuda") == ClockState(None, None, None)
