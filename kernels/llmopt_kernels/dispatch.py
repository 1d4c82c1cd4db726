"""Which version of a kernel runs: Triton's for tensors on a GPU, torch's everywhere else.

Knows no kernel. The law: importing `llmopt_kernels` imports no Triton and touches no GPU; a
`triton.py` is imported inside the branch that `uses_triton` opens.
"""

import importlib.util
import os
from functools import cache

import torch


def uses_triton(tensor: torch.Tensor) -> bool:
    """Whether Triton kernels run on this tensor: it is on a CUDA device and Triton is installed.

    The environment variable LLMOPT_TRITON=0, read once, turns them off, to compare with torch.
    """
    return tensor.is_cuda and _is_enabled()


@cache
def _is_enabled() -> bool:
    wanted = os.environ.get("LLMOPT_TRITON", "1") != "0"
    return wanted and importlib.util.find_spec("triton") is not None
