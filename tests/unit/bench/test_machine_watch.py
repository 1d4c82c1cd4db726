import torch

from llmopt.bench import machine_watch
from llmopt.bench.machine_watch import MachineWatch
from llmopt.hardware.clocks import ClockState


def test_the_peak_is_that_of_all_looks_and_the_states_are_of_both_ends(make, monkeypatch):
    sizes, clocks = iter([100, 900, 300]), iter([1000.0, 2000.0])
    monkeypatch.setattr(machine_watch, "host_bytes", lambda: next(sizes))
    monkeypatch.setattr(
        machine_watch, "clock_state", lambda device: ClockState(next(clocks), 50.0, None)
    )
    monkeypatch.setattr(machine_watch, "energy_meter", lambda device: None)
    watch = MachineWatch(torch.device("cpu"))
    watch.look()
    run = watch.complete(make.run([make.request()]))
    assert run.peak_memory_bytes == 900
    assert (run.machine_before.clock_mhz, run.machine_after.clock_mhz) == (1000, 2000)
    assert run.energy is None


def test_energy_is_counted_from_the_start(make, monkeypatch):
    from llmopt.hardware.energy import EnergyMeter

    joules = iter([5.0, 6.0, 7.0, 12.5])
    monkeypatch.setattr(
        machine_watch,
        "energy_meter",
        lambda device: EnergyMeter("rapl", "all packages", lambda: next(joules)),
    )
    run = MachineWatch(torch.device("cpu")).complete(make.run([make.request()]))
    assert (run.energy.joules, run.energy.source) == (7.5, "rapl")


def test_a_restart_forgets_the_warmup(make, monkeypatch):
    from llmopt.hardware.energy import EnergyMeter

    sizes, joules = iter([900, 100, 200]), iter([1.0, 2.0, 50.0, 51.0, 53.0, 54.0])
    monkeypatch.setattr(machine_watch, "host_bytes", lambda: next(sizes))
    monkeypatch.setattr(
        machine_watch, "energy_meter", lambda device: EnergyMeter("rapl", "all", joules.__next__)
    )
    watch = MachineWatch(torch.device("cpu"))
    watch.restart()
    run = watch.complete(make.run([make.request()]))
    assert run.peak_memory_bytes == 200
    assert run.energy.joules == 4.0
