"""Where Triton kernels are tested: on the GPU, or under Triton's interpreter on the CPU."""

import importlib.util
import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))  # for tolerances.py, interpreter.py

HAS_TRITON = importlib.util.find_spec("triton") is not None
collect_ignore_glob = [] if HAS_TRITON else ["test_*_triton.py"]
if HAS_TRITON and not torch.cuda.is_available():
    import interpreter

    interpreter.install()


def pytest_report_header() -> str:
    if not HAS_TRITON:
        return "kernels: Triton is not installed, its kernels are not tested"
    return f"kernels: Triton runs {'on the GPU' if torch.cuda.is_available() else 'interpreted'}"


@pytest.fixture(scope="session")
def device() -> torch.device:
    """The device of tensors that Triton kernels are given."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")
