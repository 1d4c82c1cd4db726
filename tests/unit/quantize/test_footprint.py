"""The arithmetic against what quantizing really takes."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from llmopt.formats.quantized import QuantSpec
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


class TensorBytes(TorchDispatchMode):
    """The most bytes that tensors held at once, of those known by `add` or made meanwhile."""

    def __init__(self) -> None:
        super().__init__()
        self.peak = 0
        self._alive: dict[StorageWeakRef, int] = {}

    def add(self, tensor: torch.Tensor) -> None:
        storage = tensor.untyped_storage()
        self._alive[StorageWeakRef(storage)] = storage.nbytes()

    def __torch_dispatch__(
        self, func: Callable[..., Any], _types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(out):
            if isinstance(leaf, torch.Tensor):
                self.add(leaf)
        self._alive = {ref: size for ref, size in self._alive.items() if not ref.expired()}
        self.peak = max(self.peak, sum(self._alive.values()))
        return out


@pytest.mark.parametrize(("columns", "rows"), [(768, 32), (512, 4096)])
def test_gptq_holds_as_many_copies_as_the_arithmetic_says(columns: int, rows: int) -> None:
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(columns + 64, columns, generator=generator)
    hessian = inputs.T @ inputs / len(inputs)
    weight = torch.randn(rows, columns, generator=generator)
    with TensorBytes() as held:
        held.add(hessian)
        held.add(weight)
        quantize_gptq(weight, hessian, QuantSpec(4, 64), GPTQOptions(scale_search=False))
    factoring = HESSIAN_COPIES * hessian.nbytes + weight.nbytes
    rounding = 2 * hessian.nbytes + WEIGHT_COPIES * weight.nbytes
    assert 0.7 * max(factoring, rounding) < held.peak < max(factoring, rounding)


def peak_of(source: Path, out: Path, tokens: CalibrationData) -> int:
    """Bytes that the tensors of a run hold at most."""
    quick = Job(parse_scheme("gptq-w4g128"), "gptq", GPTQOptions(scale_search=False))
    with TensorBytes() as held:
        quantize_jobs(source, {out: quick}, out.parent / ".j", RunOptions(calibration=tokens))
    return held.peak


def test_the_peak_does_not_grow_with_the_number_of_blocks(
    make_tiny_llama: Callable[..., Path], tokens: CalibrationData, tmp_path: Path
) -> None:
    sizes = {"hidden_size": 128, "intermediate_size": 256, "num_attention_heads": 4}
    block_bytes = 4 * (4 * 128 * 128 + 3 * 128 * 256)
    peaks = [
        peak_of(make_tiny_llama(num_hidden_layers=n, **sizes), tmp_path / str(n), tokens)
        for n in (2, 7)
    ]
    assert peaks[1] - peaks[0] < block_bytes  # the model has 5 blocks more


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
