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


def test_the_peak_of_another_runtime_is_that_of_its_processes_at_any_request(make, monkeypatch):
    sizes = {7: 100, 8: 10, 9: 1}
    listed = iter([[7, 8], [7, 8, 9]])
    monkeypatch.setattr(machine_watch, "descendants", lambda: next(listed))
    monkeypatch.setattr(machine_watch, "memory_of", lambda ids: sum(sizes[i] for i in ids))
    monkeypatch.setattr(machine_watch, "host_bytes", lambda: 10_000)
    watch = MachineWatch(torch.device("cpu"), of_children=True)
    sizes[8] = 500
    watch.look()
    sizes[8] = 20
    assert watch.complete(make.run([make.request()])).peak_memory_bytes == 600


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


def test_what_is_watched_is_the_device_that_was_named(monkeypatch):
    asked = []
    monkeypatch.setattr(machine_watch, "energy_meter", asked.append)
    monkeypatch.setattr(
        machine_watch,
        "clock_state",
        lambda device: asked.append(device) or ClockState(None, None, None),
    )
    monkeypatch.setattr("torch.cuda.reset_peak_memory_stats", asked.append)
    MachineWatch(torch.device("cuda:1"), of_children=True)
    assert {str(device) for device in asked} == {"cuda:1"}
