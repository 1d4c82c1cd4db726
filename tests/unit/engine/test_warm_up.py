"""What is done before the first request; on a GPU, whose parts are replaced here."""

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from llmopt.engine import warm_up as module
from llmopt.engine.engine import Engine, EngineConfig
from llmopt.engine.kv_cache import PagedKV
from llmopt.engine.warm_up import compile_steps, num_padding_blocks, warm_up
from llmopt.models.decoder import Decoder
from llmopt.models.loader import load_model
from llmopt.models.mlp import MixtureOfExperts

CPU = torch.device("cpu")


def test_compiling_computes_nothing_that_a_request_could_see(
    tiny_model: Decoder, make_engine: Callable[..., Engine]
) -> None:
    config = EngineConfig(
        block_size=4, num_blocks=6, max_num_seqs=3, max_num_batched_tokens=21, max_model_len=24
    )
    engine = Engine(tiny_model, config)
    plan = engine.plan
    engine.runner.kv_cache = PagedKV(plan.groups, [7], plan.layout, CPU).layers
    sizes: list[int] = []
    forward = tiny_model.forward
    try:
        tiny_model.forward = lambda ids, *rest: sizes.append(len(ids)) or forward(ids, *rest)
        compile_steps(engine.runner, plan, config)
    finally:
        del tiny_model.forward
    assert sizes == [1, 2, 4, 8, 16, 21, 1, 2, 4]
    for layer in engine.runner.kv_cache:
        assert all((cache[:-1] == 0).all() and (cache[-1] != 0).any() for cache in layer)


@pytest.fixture
def done(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What a GPU would be told, in order."""
    events: list[str] = []

    class Graphs:
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            events.append("graphs")

        def capture_all(self) -> None:
            events.append("capture")

    monkeypatch.setattr(module, "DecodeGraphs", Graphs)
    monkeypatch.setattr(module, "CudaCapture", lambda device: None)
    monkeypatch.setattr(module, "compile_steps", lambda *args: events.append("compile"))
    monkeypatch.setattr(module, "uses_triton", lambda tensor: True)
    return events


def runner_on(device: torch.device, engine: Engine) -> SimpleNamespace:
    model = SimpleNamespace(device=device)
    return SimpleNamespace(model=model, kv_cache=engine.kv.layers, graphs=None)


def test_a_gpu_compiles_before_it_records(make_engine: Callable[..., Engine], done) -> None:
    engine, device = make_engine(), torch.device("cuda")
    runner = runner_on(device, engine)
    warm_up(runner, engine.plan, EngineConfig())
    assert done == ["compile", "graphs", "capture"]
    assert runner.graphs is not None
    assert num_padding_blocks(device) == 1


@pytest.mark.parametrize("triton", [False, True])
def test_without_graphs_or_without_triton_nothing_is_recorded(
    make_engine: Callable[..., Engine], done, monkeypatch, triton
) -> None:
    monkeypatch.setattr(module, "uses_triton", lambda tensor: triton)
    engine = make_engine()
    runner = runner_on(torch.device("cuda"), engine)
    warm_up(runner, engine.plan, EngineConfig(cuda_graphs=not triton))
    assert done == ["compile"]
    assert runner.graphs is None


def test_a_cpu_does_nothing(make_engine: Callable[..., Engine], done) -> None:
    engine = make_engine(cuda_graphs=True)
    assert done == []
    assert engine.runner.graphs is None
    assert num_padding_blocks(CPU) == 0
    assert len(engine.kv.layers[0][0]) == engine.plan.num_blocks[0]


def test_experts_are_stacked_once_and_before_anything_is_compiled(
    make_engine: Callable[..., Engine], make_tiny_model, done, monkeypatch
) -> None:
    monkeypatch.setattr(MixtureOfExperts, "stack", lambda self: done.append("stack"))
    model = load_model(make_tiny_model("mixtral"), dtype="float32")
    engine = make_engine()
    runner = runner_on(torch.device("cuda"), engine)
    model.device = torch.device("cuda")
    runner.model = model
    assert done == [], "a model that is only loaded may be quantized"
    for _ in range(2):
        warm_up(runner, engine.plan, EngineConfig(cuda_graphs=False))
    assert done == ["stack", "stack", "compile", "compile"]
