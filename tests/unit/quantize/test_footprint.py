"""The arithmetic against what quantizing really takes."""

import gc
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from llmopt.formats.quantized import QuantSpec
from llmopt.hardware.memory import MemoryMeter, host_bytes
from llmopt.models.config import ModelConfig
from llmopt.quantize.calibration import CalibrationData
from llmopt.quantize.footprint import HESSIAN_COPIES, WEIGHT_COPIES, footprint
from llmopt.quantize.gptq import GPTQOptions, quantize_gptq
from llmopt.quantize.options import Job, RunOptions
from llmopt.quantize.pipeline import quantize_jobs
from llmopt.quantize.scheme import parse_scheme
from llmopt.quantize.storage import default_format

GIGABYTE = 10**9


def llama(hidden: int, inner: int, layers: int, heads: int, kv_heads: int) -> ModelConfig:
    return ModelConfig.from_hf(
        {
            "architectures": ["LlamaForCausalLM"],
            "hidden_size": hidden,
            "intermediate_size": inner,
            "num_hidden_layers": layers,
            "num_attention_heads": heads,
            "num_key_value_heads": kv_heads,
            "vocab_size": 128256,
            "rms_norm_eps": 1e-5,
            "max_position_embeddings": 8192,
        }
    )


def job(name: str, **settings: bool) -> Job:
    scheme = parse_scheme(name)
    return Job(scheme, default_format(scheme), **settings)


@pytest.mark.parametrize(("columns", "rows"), [(3072, 64), (256, 40960)])
def test_gptq_holds_as_many_copies_as_the_arithmetic_says(columns: int, rows: int) -> None:
    """With tensors above 32 MiB, which the allocator gives back at once."""
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(columns + 64, columns, generator=generator)
    hessian = inputs.T @ inputs / len(inputs)
    weight = torch.randn(rows, columns, generator=generator)
    del inputs
    options = GPTQOptions(scale_search=False)
    quantize_gptq(weight[:, :256], hessian[:256, :256], QuantSpec(4, 128), options)  # warm up
    gc.collect()
    before = host_bytes()
    with MemoryMeter(torch.device("cpu")) as meter:
        quantize_gptq(weight, hessian, QuantSpec(4, 128), options)
        extra = meter.peak().host_bytes - before
    taken = extra + hessian.nbytes + weight.nbytes
    factoring = HESSIAN_COPIES * hessian.nbytes + weight.nbytes
    rounding = 2 * hessian.nbytes + WEIGHT_COPIES * weight.nbytes
    assert 0.7 * max(factoring, rounding) < taken < 1.15 * max(factoring, rounding)


def peak_of(source: Path, out: Path, tokens: CalibrationData) -> int:
    """Bytes that quantizing takes on top of what the process had."""
    gc.collect()
    run = RunOptions(calibration=tokens)
    quick = Job(parse_scheme("gptq-w4g128"), "gptq", GPTQOptions(scale_search=False))
    (summary,) = quantize_jobs(source, {out: quick}, out.parent / ".j", run)
    assert summary.peak_memory.host_before_bytes is not None
    return summary.peak_memory.host_bytes - summary.peak_memory.host_before_bytes


def test_the_peak_does_not_grow_with_the_number_of_blocks(
    make_tiny_llama: Callable[..., Path], tokens: CalibrationData, tmp_path: Path
) -> None:
    sizes = {"hidden_size": 384, "intermediate_size": 768, "num_attention_heads": 8}
    block_bytes = 4 * (2 * 384 * 384 + 2 * 384 * 96 + 3 * 384 * 768)
    peaks = [
        peak_of(make_tiny_llama(num_hidden_layers=n, **sizes), tmp_path / str(n), tokens)
        for n in (2, 12)
    ]
    assert peaks[1] - peaks[0] < 5 * block_bytes  # the model has 10 blocks more


def test_a_second_stream_of_hidden_states_counts() -> None:
    config = llama(2048, 8192, 16, 32, 8)
    one = footprint(config, [job("gptq-w4g64")], 10_000)
    two = footprint(config, [job("gptq-w4g64"), job("awq-w4g64")], 10_000)
    shared = footprint(config, [job("gptq-w4g64", propagate=False), job("w8a8")], 10_000)
    states = 4 * 10_000 * 2048
    assert two.hidden_states - one.hidden_states == states
    assert shared.hidden_states == one.hidden_states


def test_methods_without_data_need_no_hidden_states() -> None:
    found = footprint(llama(2048, 8192, 16, 32, 8), [job("nf4")], 0)
    assert (found.hidden_states, found.activations) == (0, 0)
    assert found.device_bytes < GIGABYTE


def test_a_model_of_70_billion_weights_fits_a_gpu_of_24_gigabytes() -> None:
    config = llama(8192, 28672, 80, 64, 8)
    for name in ("gptq-w4g128", "awq-w4g128-asym", "awq+gptq-w4g128-asym", "nf4", "w8a8"):
        found = footprint(config, [job(name)], 128 * 2048)
        assert found.device_bytes < 24 * GIGABYTE, name
        assert found.hidden_states < 16 * GIGABYTE, name


def test_the_number_of_blocks_does_not_matter() -> None:
    small, large = (llama(4096, 14336, layers, 32, 8) for layers in (2, 80))
    jobs = [job("gptq-w4g128")]
    assert footprint(small, jobs, 4096) == footprint(large, jobs, 4096)
