"""Small arrays of a step on their way between host and device, without anybody waiting.

Knows nothing about requests, batches or models.
Law: nothing here waits for a device but `TokenReadback.read`. Pinned memory comes from torch's
caching host allocator, which hands a buffer out again only when the copies from it are done: so
each step in flight has a set of its own.
"""

from typing import Any

import numpy.typing as npt
import torch
from torch import Tensor

from llmopt.layers.sampler import DeviceTokens

_Event: Any = torch.cuda.Event  # untyped in torch


def to_device(array: npt.NDArray[Any], device: torch.device) -> Tensor:
    """The array on `device`; on a CPU the tensor shares its memory."""
    tensor = torch.from_numpy(array)
    if device.type != "cuda":
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)


def copy_into(target: Tensor, array: npt.NDArray[Any]) -> None:
    """Overwrite `target`, which has the shape of the array and its dtype."""
    tensor = torch.from_numpy(array)
    target.copy_(tensor.pin_memory() if target.is_cuda else tensor, non_blocking=True)


class TokenReadback:
    """Tokens that are being copied to the host."""

    def __init__(self, tokens: DeviceTokens) -> None:
        table = tokens.table
        self._event = None
        if table.is_cuda:
            table = torch.empty(table.shape, dtype=table.dtype, pin_memory=True)
            table.copy_(tokens.table, non_blocking=True)
            self._event = _Event()
            self._event.record()
        self._tokens = DeviceTokens(table, tokens.dtype)

    def read(self) -> list[int]:
        """Wait for the tokens. Raises EngineError where logits are not finite numbers."""
        if self._event is not None:
            self._event.synchronize()
        return self._tokens.read()
