"""Counters are read, wrapped and missing as the kernel and the driver have them."""

import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from llmopt.hardware.energy import energy_meter


def write_zone(root: Path, name: str, micro_joules: int, maximum: int = 1_000_000) -> Path:
    zone = root / name
    zone.mkdir(parents=True, exist_ok=True)
    (zone / "energy_uj").write_text(f"{micro_joules}\n")
    (zone / "max_energy_range_uj").write_text(f"{maximum}\n")
    return zone


def test_packages_are_added_and_their_parts_are_not(tmp_path: Path) -> None:
    write_zone(tmp_path, "intel-rapl:0", 100)
    write_zone(tmp_path, "intel-rapl:1", 200)
    write_zone(tmp_path, "intel-rapl:0:0", 50)
    meter = energy_meter("cpu", tmp_path)
    assert meter is not None
    write_zone(tmp_path, "intel-rapl:0", 300_100)
    write_zone(tmp_path, "intel-rapl:1", 500_200)
    write_zone(tmp_path, "intel-rapl:0:0", 100_000)
    energy = meter.read()
    assert energy.joules == pytest.approx(0.8)
    assert energy.source == "rapl"


def test_a_counter_that_wraps_goes_on(tmp_path: Path) -> None:
    write_zone(tmp_path, "intel-rapl:0", 900_000)
    meter = energy_meter("cpu", tmp_path)
    assert meter is not None
    write_zone(tmp_path, "intel-rapl:0", 100_000)
    assert meter.read().joules == pytest.approx(0.2)
    write_zone(tmp_path, "intel-rapl:0", 50_000)
    assert meter.read().joules == pytest.approx(1.15)


def test_no_counter_no_meter(tmp_path: Path) -> None:
    assert energy_meter("cpu", tmp_path) is None
    (tmp_path / "intel-rapl:0").mkdir()
    assert energy_meter("cpu", tmp_path) is None  # its files may not be read


class FakeNvml(SimpleNamespace):
    class NVMLError(Exception):
        pass

    energy = 5_000.0

    def nvmlInit(self) -> None:  # noqa: N802 - NVML's own name
        pass

    def nvmlDeviceGetHandleByUUID(self, uuid: str) -> str:  # noqa: N802 - NVML's own name
        assert uuid == "GPU-1"
        return uuid

    def nvmlDeviceGetTotalEnergyConsumption(self, handle: str) -> float:  # noqa: N802 - as above
        if self.energy < 0:
            raise self.NVMLError
        return self.energy


def test_nvml_counts_millijoules(monkeypatch: pytest.MonkeyPatch) -> None:
    nvml = FakeNvml()
    monkeypatch.setitem(sys.modules, "pynvml", nvml)
    monkeypatch.setattr("llmopt.hardware.nvml.gpu_uuid", lambda device: "GPU-1")
    meter = energy_meter("cuda")
    assert meter is not None
    nvml.energy = 7_500.0
    energy = meter.read()
    assert (energy.joules, energy.source, energy.covers) == (pytest.approx(2.5), "nvml", "GPU only")
    nvml.energy = -1.0
    assert energy_meter("cuda") is None


def test_without_nvml_a_gpu_has_no_meter(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("llmopt.hardware.nvml.gpu_uuid", lambda device: "GPU-1")
    monkeypatch.setitem(sys.modules, "pynvml", None)
    assert energy_meter("cuda") is None


def test_without_a_gpu_there_is_no_meter(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert energy_meter("cuda") is None
