"""What the benchmark runs on a GPU: with Triton's kernels, interpreted where there is no GPU."""

import sys
from dataclasses import replace

import interpreter_casts  # noqa: F401  (mends the interpreter)
import pytest
import torch

from bench import tune as tuning_run
from bench.case import OURS
from bench.more_tunables import other_tunables
from bench.shapes import TINY
from bench.suite import SUITE, measure_kernel
from bench.timing import Timing
from bench.tunables import matmul_switches
from bench.tune import TUNED_KERNELS, best_config, merged, tuned_configs
from llmopt.layers import dynamic
from llmopt_kernels.matmul.configs import ShapeClass
from llmopt_kernels.tuning import read_tuned

SMALL = replace(TINY, tokens=(3,), prompts=(20,), vocab_size=150)
MATMULS = ("wna16", "nf4", "w8a8", "fp8")
OTHERS = tuple(name for name in TUNED_KERNELS if name not in MATMULS)


@pytest.fixture
def on_gpu(device, monkeypatch):
    """Every dispatch takes Triton's kernels, also for tensors on the CPU."""
    if device.type == "cuda":
        return device
    for name, module in list(sys.modules.items()):
        if name.startswith(("llmopt", "bench")) and hasattr(module, "uses_triton"):
            monkeypatch.setattr(module, "uses_triton", lambda tensor: True)
    monkeypatch.setattr(dynamic, "_multiplies_fp8", lambda values: True)
    monkeypatch.setenv("LLMOPT_NATIVE", "0")
    return device


@pytest.mark.parametrize("kernel", SUITE)
def test_outputs_of_triton_are_right(kernel, on_gpu):
    rows = [row for case in measure_kernel(kernel, on_gpu, SMALL, None) for row in case]
    ours = [row for row in rows if row.contender == OURS]
    assert [row.problem for row in ours] == [None] * len(ours)
    assert len(ours) >= 1
    if kernel in MATMULS:
        assert all(row.variant.startswith("triton ") for row in ours), "not another kernel"


@pytest.mark.parametrize("kernel", MATMULS)
def test_a_class_of_a_product_is_launched_with_its_candidates(kernel, on_gpu):
    switch = next(iter(matmul_switches(kernel, on_gpu, SMALL)))
    assert switch.kernel == kernel
    tunable = switch.tuned[16]
    shape = ShapeClass.parse(tunable.shape_class)
    assert (shape.num_tokens, shape.of_weight) == (16, switch.shape_class)
    assert tunable.default in tunable.candidates
    default = tunable.launch(tunable.default)
    assert default.shape == (16, 256)
    other = tunable.launch(tunable.candidates[-1])
    assert torch.allclose(default.float(), other.float(), rtol=0.05, atol=0.05)
    if kernel in ("wna16", "nf4"):
        by_cublas = switch.other[16]()
        assert torch.allclose(default.float(), by_cublas.float(), rtol=0.05, atol=0.05)


def test_classes_of_the_matrices_come_once(on_gpu):
    square = replace(SMALL, inner=128)  # three of the matrices are then of two classes
    classes = [switch.shape_class for switch in matmul_switches("w8a8", on_gpu, square)]
    assert len(classes) == len(set(classes)) == 2


@pytest.mark.parametrize("kernel", OTHERS)
def test_a_class_of_another_kernel_is_launched(kernel, on_gpu):
    tunables = list(other_tunables(kernel, on_gpu, SMALL))
    assert tunables
    assert len({tunable.shape_class for tunable in tunables}) == len(tunables)
    tunable = tunables[0]
    assert tunable.kernel == kernel
    assert set(tunable.default) == set(tunable.candidates[0])
    tunable.launch(tunable.candidates[0])


def fake_times(monkeypatch, seconds):
    """seconds: of a call, by its name and what it is given."""

    def timed(calls, device, effort):
        return {name: Timing(s, s, s, s, 3, True) for name, s in seconds(calls).items()}

    monkeypatch.setattr(tuning_run, "time_calls", timed)


def test_a_switch_is_the_last_batch_at_which_ours_is_not_slower(on_gpu, monkeypatch):
    order = []

    def seconds(calls):
        if "other" not in calls:
            return dict.fromkeys(calls, 1.0)
        order.append("other")
        return {"ours": 1.0, "other": 2.0 if len(order) < 4 else 0.5}

    fake_times(monkeypatch, seconds)
    shapes = replace(SMALL, hidden=128, inner=128, num_heads=1, num_kv_heads=1, head_dim=128)
    found = list(tuned_configs("wna16", on_gpu, shapes))
    first = found[: next(i for i, row in enumerate(found) if row[0] == "wna16.switch") + 1]
    assert [row[0] for row in first] == ["wna16"] * 3 + ["wna16.switch"]
    assert first[-1][2] == {"tokens": 64}
    assert [ShapeClass.parse(row[1]).num_tokens for row in first[:3]] == [16, 32, 64]


def test_a_config_that_was_faster_by_chance_is_not_kept(on_gpu, monkeypatch):
    (tunable,) = other_tunables("store_kv", on_gpu, SMALL)
    costs = iter([2.0, *[1.0] * 100])

    def seconds(calls):
        if "best" in calls:
            return {"best": 1.5, "default": 1.4}
        return dict.fromkeys(calls, next(costs))

    fake_times(monkeypatch, seconds)
    assert best_config(tunable, on_gpu) == tunable.default


def test_a_config_that_is_really_faster_is_kept(on_gpu, monkeypatch):
    (tunable,) = other_tunables("store_kv", on_gpu, SMALL)
    costs = iter([2.0, 1.0, *[3.0] * 100])

    def seconds(calls):
        if "best" in calls:
            return {"best": 1.0, "default": 1.4}
        return dict.fromkeys(calls, next(costs))

    fake_times(monkeypatch, seconds)
    assert best_config(tunable, on_gpu) == tunable.candidates[0] != tunable.default


def test_a_file_keeps_the_classes_that_were_not_measured():
    table = {"wna16": {"a": {"x": 1}, "b": {"x": 2}}, "moe": {"c": {"x": 3}}}
    assert merged(table, "wna16", "b", {"x": 9}) == {
        "wna16": {"a": {"x": 1}, "b": {"x": 9}},
        "moe": {"c": {"x": 3}},
    }
    assert merged({}, "nf4", "d", {"x": 1}) == {"nf4": {"d": {"x": 1}}}
    assert table["wna16"]["b"] == {"x": 2}


@pytest.fixture
def fake_gpu(tmp_path, monkeypatch):
    """A GPU with a file of its own, and two classes of each kernel; returns the file."""
    path = tmp_path / "gpu.json"
    path.write_text('{"wna16": {"old": {"x": 1}}}')
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA H100")
    monkeypatch.setattr(tuning_run, "tuned_file", lambda name: path)
    monkeypatch.setattr(
        tuning_run,
        "tuned_configs",
        lambda kernel, *_: iter([(kernel, "a", {"x": 2}), (kernel, "b", {"x": 3})]),
    )
    return path


def test_tuning_writes_every_class_as_it_is_found(fake_gpu):
    said = []
    path = tuning_run.tune(("wna16", "moe"), torch.device("cuda"), SMALL, None, said.append)
    assert path == fake_gpu
    both = {"a": {"x": 2}, "b": {"x": 3}}
    assert read_tuned(path) == {"wna16": {"old": {"x": 1}, **both}, "moe": both}
    assert said[0] == "wna16 a: {'x': 2}"
    assert len(said) == 4


def test_tuning_stops_when_its_time_is_up(fake_gpu):
    said = []
    tuning_run.tune((), torch.device("cuda"), SMALL, 0.0, said.append)
    assert read_tuned(fake_gpu)["wna16"] == {"old": {"x": 1}, "a": {"x": 2}}
    assert said[-1] == "the time is up"
