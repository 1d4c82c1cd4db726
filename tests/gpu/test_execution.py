"""CUDA graphs, asynchronous scheduling and no wait inside a step, on a CUDA device."""

from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch

from llmopt.engine.engine import Engine, EngineConfig
from llmopt.engine.sampling_params import SamplingParams
from llmopt.models.loader import load_model

pytestmark = pytest.mark.gpu

CONFIG = EngineConfig(max_num_seqs=9, num_blocks=64, async_scheduling="off", cuda_graphs=False)
PROMPTS = [list(range(5, 5 + n)) for n in (1, 15, 16, 17, 60)]
PARAMS = [
    SamplingParams(max_tokens=24 + i, temperature=float(i % 2), seed=i, ignore_eos=True)
    for i in range(len(PROMPTS))
]


def generate(engine: Engine) -> dict[str, list[int]]:
    tokens: dict[str, list[int]] = {}
    for index, (prompt, params) in enumerate(zip(PROMPTS, PARAMS, strict=True)):
        tokens |= {name: [] for name in engine.add_request(str(index), prompt, params)}
    while engine.has_unfinished():
        for out in engine.step():
            tokens[out.request_id] += out.token_ids
    return tokens


@pytest.mark.parametrize("graphs", [False, True])
@pytest.mark.parametrize("ahead", ["off", "on"])
@pytest.mark.parametrize("limits", [{}, {"num_blocks": 9}, {"max_num_batched_tokens": 13}], ids=str)
def test_tokens_are_those_of_plain_execution(make_tiny_model, limits, ahead, graphs):
    for architecture in ("llama", "gemma3_text", "qwen3_moe"):
        model = load_model(make_tiny_model(architecture), dtype="float32", device="cuda")
        config = replace(CONFIG, **limits)
        expected = generate(Engine(model, config))
        changed = replace(config, async_scheduling=ahead, cuda_graphs=graphs)
        assert generate(Engine(model, changed)) == expected


@pytest.fixture
def no_waiting() -> Iterator[None]:
    yield
    torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("graphs", [False, True])
def test_a_launched_step_waits_for_nothing(tiny_llama, graphs, no_waiting):
    model = load_model(tiny_llama, dtype="bfloat16", device="cuda")
    engine = Engine(model, replace(CONFIG, async_scheduling="on", cuda_graphs=graphs))
    launch = engine.runner.launch

    def launch_strictly(*args):
        torch.cuda.set_sync_debug_mode("error")
        try:
            return launch(*args)
        finally:
            torch.cuda.set_sync_debug_mode("default")

    expected = generate(engine)  # compiles what is left
    engine.runner.launch = launch_strictly
    assert generate(engine) == expected


def test_prefill_and_decode_are_compiled_and_recorded_when_the_engine_is_made(tiny_llama):
    engine = Engine(load_model(tiny_llama, device="cuda"), EngineConfig(max_num_seqs=4))
    graphs = engine.runner.graphs
    assert graphs is not None
    recorded = dict(graphs._graphs)
    assert set(recorded) == {(size, 512) for size in (1, 2, 4)}
    engine.add_request("a", [3, 4, 5], SamplingParams(max_tokens=8, ignore_eos=True))
    while engine.has_unfinished():
        engine.step()
    assert graphs._graphs == recorded
