"""The same engine and the same tokens on a CUDA device."""

import pytest
import torch

from llmopt.engine.engine import Engine, EngineConfig
from llmopt.engine.sampling_params import SamplingParams
from llmopt.formats.quantized import QuantSpec
from llmopt.models.loader import load_model
from llmopt.quantize.options import QuantizeOptions
from llmopt.quantize.pipeline import quantize_checkpoint

pytestmark = pytest.mark.gpu

PROMPTS = [list(range(5, 5 + n)) for n in (1, 15, 16, 17, 60)]


def greedy(path, device: str, dtype: str = "float32", **limits: int) -> dict[str, list[int]]:
    engine = Engine(load_model(path, dtype=dtype, device=device), EngineConfig(**limits))
    for index, prompt in enumerate(PROMPTS):
        engine.add_request(str(index), prompt, SamplingParams(max_tokens=24, ignore_eos=True))
    tokens: dict[str, list[int]] = {str(index): [] for index in range(len(PROMPTS))}
    while engine.has_unfinished():
        for output in engine.step():
            tokens[output.request_id] += output.token_ids
    return tokens


@pytest.mark.parametrize(
    "limits",
    [
        {},
        {"max_num_batched_tokens": 7},
        {"num_blocks": 8, "block_size": 16},
    ],
)
def test_greedy_tokens_in_float32_are_those_of_the_cpu(tiny_llama, limits):
    assert greedy(tiny_llama, "cuda", **limits) == greedy(tiny_llama, "cpu")


def test_seeded_sampling_on_the_device_is_reproducible(tiny_llama):
    def sampled() -> list[int]:
        engine = Engine(load_model(tiny_llama, device="cuda"))
        params = SamplingParams(max_tokens=30, temperature=0.9, top_k=20, seed=7, ignore_eos=True)
        engine.add_request("a", [3, 4, 5], params)
        tokens: list[int] = []
        while engine.has_unfinished():
            tokens += [token for out in engine.step() for token in out.token_ids]
        return tokens

    assert sampled() == sampled()


def test_a_quantized_checkpoint_gives_the_cpus_tokens(tiny_llama, tmp_path):
    options = QuantizeOptions(method="rtn", spec=QuantSpec(8, 32))
    quantize_checkpoint(tiny_llama, tmp_path / "w8", options)
    assert greedy(tmp_path / "w8", "cuda") == greedy(tmp_path / "w8", "cpu")


def test_ceilings_of_the_device_are_plausible(tmp_path, monkeypatch):
    from llmopt.hardware.ceilings import measure_ceilings

    monkeypatch.setenv("LLMOPT_CACHE", str(tmp_path))
    ceilings = measure_ceilings("cuda")
    assert ceilings.read_bytes_per_s > 1e10
    assert ceilings.gemm_flops["bfloat16"] > ceilings.gemm_flops["float32"] > 1e11
    assert torch.cuda.is_available()
