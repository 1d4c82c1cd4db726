"""Ceilings are right for the work that was done, and never fall."""

from collections.abc import Callable
from dataclasses import asdict, fields
from pathlib import Path

import pytest
import torch

from llmopt.hardware import ceilings
from llmopt.hardware.ceilings import measure_ceilings
from llmopt.results.schema import Ceilings


@pytest.fixture(autouse=True)
def small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Small arrays, no time to spend, and a cache of its own."""
    monkeypatch.setattr(ceilings, "_SIZES", {"cpu": ceilings._Sizes(1 << 20, 64)})
    monkeypatch.setattr(ceilings, "_BUDGET_S", 0.0)
    monkeypatch.setenv("LLMOPT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def run_with_clock(monkeypatch: pytest.MonkeyPatch) -> Callable[[dict[str, list[float]]], None]:
    """Replace the stop-watch: seconds per workload, one for each time that it is timed."""

    def install(seconds: dict[str, list[float]]) -> None:
        monkeypatch.setattr(ceilings, "_time", lambda work, device: seconds[work.name].pop(0))

    return install


def test_fields_are_those_of_the_result_schema() -> None:
    measured = measure_ceilings("cpu")
    assert [f.name for f in fields(measured)] == [f.name for f in fields(Ceilings)]
    assert set(measured.gemm_flops) == {"float32", "bfloat16"}
    rates = [*measured.gemm_flops.values(), measured.copy_bytes_per_s, measured.read_bytes_per_s]
    assert min(rates) > 1e6
    assert measured.num_threads == torch.get_num_threads()
    assert measured.measured_at.endswith("+00:00")


def test_rates_are_work_by_the_best_time_after_the_warm_up(
    run_with_clock: Callable[[dict[str, list[float]]], None],
) -> None:
    run_with_clock(
        {
            "read": [0.001, 2.0, 1.0, 4.0],  # the first is the warm-up and does not count
            "copy": [0.001, 2.0, 2.0, 2.0],
            "float32": [0.001, 8.0, 4.0, 5.0],
            "bfloat16": [0.001, 1.0, 3.0, 3.0],
        }
    )
    measured = measure_ceilings("cpu")
    assert measured.read_bytes_per_s == 1 << 20
    assert measured.copy_bytes_per_s == 1 << 20  # twice the array in two seconds
    assert measured.gemm_flops == {"float32": 2 * 64**3 / 4, "bfloat16": 2.0 * 64**3}


def test_the_work_is_really_done() -> None:
    workloads = {w.name: w for w in ceilings._workloads(torch.device("cpu"))}
    assert float(workloads["read"].call()) == (1 << 20) / 4
    assert torch.equal(workloads["copy"].call(), torch.ones((1 << 20) // 4))
    assert workloads["bfloat16"].call().dtype == torch.bfloat16
    assert workloads["float32"].call().shape == (64, 64)


def test_each_rate_is_the_best_that_was_ever_seen(
    small: Path, run_with_clock: Callable[[dict[str, list[float]]], None]
) -> None:
    rounds = {"read": 1.0, "copy": 1.0, "float32": 1.0, "bfloat16": 1.0}
    run_with_clock({name: [s] * 4 for name, s in (rounds | {"read": 2.0}).items()})
    first = measure_ceilings("cpu")
    run_with_clock({name: [s] * 4 for name, s in (rounds | {"float32": 4.0}).items()})
    second = measure_ceilings("cpu")
    assert second.read_bytes_per_s == 2 * first.read_bytes_per_s
    assert second.gemm_flops == first.gemm_flops
    assert len(list(small.rglob("*.json"))) == 1


def test_other_threads_have_other_ceilings(small: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    measure_ceilings("cpu")
    monkeypatch.setattr(torch, "get_num_threads", lambda: 97)
    assert measure_ceilings("cpu").num_threads == 97
    assert len(list(small.rglob("*.json"))) == 2


@pytest.mark.parametrize("content", ["", "{}", "[1]", '{"gemm_flops": {}, "more": 1}'])
def test_a_damaged_cache_is_measured_again(small: Path, content: str) -> None:
    measure_ceilings("cpu")
    (file,) = small.rglob("*.json")
    file.write_text(content)
    again = measure_ceilings("cpu")
    assert ceilings._read(file) == again
    assert asdict(again)["read_bytes_per_s"] > 0


def test_a_cache_that_cannot_be_written_costs_only_time(
    small: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small.parent.joinpath("file").touch()
    monkeypatch.setenv("LLMOPT_CACHE", str(small.parent / "file"))
    assert measure_ceilings("cpu").read_bytes_per_s > 0
