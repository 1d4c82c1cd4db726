"""Decode steps of an engine through the buffers of CUDA graphs, with its kernels on Triton.

On a CPU nothing is recorded: what would be is called again, under Triton's interpreter.
"""

import pytest
import torch

from llmopt.engine.decode_graphs import CudaCapture, DecodeGraphs
from llmopt.engine.engine import Engine, EngineConfig
from llmopt.engine.kv_cache import PagedKV
from llmopt.engine.sampling_params import SamplingParams
from llmopt.models.loader import load_model

PACKAGES = ("paged_attention", "rotary", "store_kv", "rms_norm", "gated_activation")
PROMPTS = [[3, 4, 5], list(range(2, 14)), [7]]


def generate(engine: Engine) -> dict[str, list[int]]:
    params = SamplingParams(max_tokens=4, ignore_eos=True)
    tokens: dict[str, list[int]] = {}
    for index, prompt in enumerate(PROMPTS):
        tokens |= {name: [] for name in engine.add_request(str(index), prompt, params)}
    while engine.has_unfinished():
        for out in engine.step():
            tokens[out.request_id] += out.token_ids
    return tokens


@pytest.mark.parametrize("architecture", ["llama", "gemma3_text"])
def test_bounds_and_padding_change_no_token(architecture, make_tiny_model, device, monkeypatch):
    model = load_model(make_tiny_model(architecture), dtype="float32", device=str(device))
    config = EngineConfig(
        block_size=8, num_blocks=9, max_num_seqs=4, cuda_graphs=False, async_scheduling="off"
    )
    expected = generate(Engine(model, config))
    for package in PACKAGES:
        monkeypatch.setattr(f"llmopt_kernels.{package}.uses_triton", lambda tensor: True)
    engine = Engine(model, config)
    plan = engine.plan
    engine.kv = PagedKV(plan.groups, [n + 1 for n in plan.num_blocks], plan.layout, device)
    engine.runner.kv_cache = engine.kv.layers
    calls: list[int] = []

    def keep(compute):
        def replay() -> torch.Tensor:
            calls.append(1)
            return compute()

        return replay

    engine.runner.graphs = DecodeGraphs(
        model,
        engine.kv.layers,
        plan.groups,
        padding_blocks=plan.num_blocks,
        block_size=8,
        max_num_seqs=4,
        max_model_len=plan.max_model_len,
        capture=CudaCapture(device) if device.type == "cuda" else keep,
    )
    assert generate(engine) == expected
    assert device.type == "cuda" or len(calls) == 3
