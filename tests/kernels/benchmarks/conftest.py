"""The benchmarks of kernels are imported from a checkout, as `llmopt bench-kernels` does."""

import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[3] / "kernels"))

from bench.kernel_run import make_result
from bench.timing import Effort
from llmopt.results.kernels import EngineRow, KernelResult, KernelRow
from llmopt.results.schema import Ceilings

CPU = torch.device("cpu")


@pytest.fixture(scope="session")
def brief() -> Effort:
    """As short as a measurement can be."""
    return Effort(budget_s=0.0, min_rounds=2, max_rounds=2, flush_bytes=1 << 12)


@pytest.fixture(scope="session")
def make_row() -> Callable[..., KernelRow]:
    return partial(
        KernelRow,
        kernel="wna16",
        shape="w4g128 64x64",
        num_tokens=1,
        contender="llmopt",
        variant="",
        problem=None,
        median_s=1e-3,
        low_s=0.9e-3,
        high_s=1.1e-3,
        num_rounds=5,
        is_graph=True,
        num_bytes=2_000_000,
        num_flops=3e9,
        flops_dtype="bfloat16",
    )


@pytest.fixture(scope="session")
def make_engine_row() -> Callable[..., EngineRow]:
    return partial(
        EngineRow,
        scheme="bf16",
        stage="decode",
        batch=1,
        context=100,
        num_steps=4,
        step_s=1e-3,
        host_s=2e-4,
        num_bytes=3_000_000.0,
        num_flops=1e9,
    )


@pytest.fixture(scope="session")
def ceilings() -> Ceilings:
    return Ceilings(
        gemm_flops={"bfloat16": 10e12, "int8": 20e12},
        copy_bytes_per_s=3e9,
        read_bytes_per_s=4e9,
        measured_at="2026-01-01T00:00:00+00:00",
        num_threads=1,
        device="cpu",
    )


@pytest.fixture(scope="session")
def plain_result(ceilings) -> KernelResult:
    return make_result(CPU, ceilings, "tiny", ())
