"""The models in memory, as many as fit.

Knows nothing about what is done with them. The law: the models kept here never take more than the
budget, except that one alone may; the one used longest ago goes first.
"""

import math
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path

import psutil
import torch

from llmopt.formats.checkpoint import CheckpointReader
from llmopt.models.llama import LlamaModel
from llmopt.models.loader import DTYPES, load_model

Loader = Callable[[Path, str], LlamaModel]


class LoadedModels:
    """Models by path and dtype, loaded when asked for."""

    def __init__(self, budget_bytes: int, load: Loader) -> None:
        self._budget_bytes = budget_bytes
        self._load = load
        self._models: OrderedDict[tuple[Path, str], tuple[LlamaModel, int]] = OrderedDict()

    @classmethod
    def on(cls, device: str) -> "LoadedModels":
        """Models on a device, in at most half of the memory that is free on it now."""
        if torch.device(device).type == "cuda":
            free_bytes = torch.cuda.mem_get_info(device)[0]
        else:
            free_bytes = psutil.virtual_memory().available
        return cls(
            free_bytes // 2, lambda path, dtype: load_model(path, dtype=dtype, device=device)
        )

    def get(self, path: Path, dtype: str) -> LlamaModel:
        """The model, from memory or from disk. Raises what `load_model` raises."""
        key = (path, dtype)
        if key not in self._models:
            self._make_room(_estimated_bytes(path, dtype))
            model = self._load(path, dtype)
            self._models[key] = (model, model.weight_bytes + model.embedding.nbytes)
        self._models.move_to_end(key)
        return self._models[key][0]

    def _make_room(self, num_bytes: int) -> None:
        while self._models and self._used_bytes() + num_bytes > self._budget_bytes:
            self._models.popitem(last=False)

    def _used_bytes(self) -> int:
        return sum(num_bytes for _, num_bytes in self._models.values())


def _estimated_bytes(path: Path, dtype: str) -> int:
    """Memory of a checkpoint once loaded: stored integers as they are, floats in `dtype`."""
    reader = CheckpointReader(path)
    total = 0
    for name in reader.names():
        stored = reader.dtype(name)
        loaded = DTYPES.get(dtype, stored) if stored.is_floating_point else stored
        total += math.prod(reader.shape(name)) * loaded.itemsize
    return total
