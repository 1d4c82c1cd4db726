"""The models in memory, as many as fit.

Knows nothing about what is done with them. The law: the models kept here never take more than the
budget, except that one alone may; the one used longest ago goes first.
"""

from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path

import psutil
import torch

from llmopt.bench.facts import tensor_sizes
from llmopt.formats.weights import quantized_weights
from llmopt.layers.native_linear import WeightActivations
from llmopt.models.decoder import Decoder
from llmopt.models.dummy import make_dummy_model
from llmopt.models.loader import DTYPES, load_model, open_checkpoint

Loader = Callable[[Path, str, WeightActivations], Decoder]
# path, dtype, activations before quantized weights, and the scheme of random weights (None: real)
_Key = tuple[Path, str, WeightActivations, str | None]


class LoadedModels:
    """Models by path, dtype and activations, loaded when asked for."""

    def __init__(self, budget_bytes: int, load: Loader, device: str = "cpu") -> None:
        self._budget_bytes = budget_bytes
        self._load = load
        self._device = device  # of models that are not loaded
        self._models: OrderedDict[_Key, tuple[Decoder, int]] = OrderedDict()

    @classmethod
    def on(cls, device: str) -> "LoadedModels":
        """Models on a device, in at most half of the memory that is free on it now."""
        if torch.device(device).type == "cuda":
            free_bytes = torch.cuda.mem_get_info(device)[0]
        else:
            free_bytes = psutil.virtual_memory().available
        return cls(
            free_bytes // 2,
            lambda path, dtype, activations: load_model(
                path, dtype=dtype, device=device, activations=activations
            ),
            device,
        )

    def get(self, path: Path, dtype: str, activations: WeightActivations = "auto") -> Decoder:
        """The model, from memory or from disk. Raises what `load_model` raises."""
        key = (path, dtype, activations, None)
        if key not in self._models:
            self._make_room(_estimated_bytes(path, dtype))
            model = self._load(path, dtype, activations)
            self._models[key] = (model, _num_bytes(model))
        return self._used_now(key)

    def get_dummy(
        self,
        path: Path,
        dtype: str,
        scheme: str | None,
        activations: WeightActivations = "auto",
    ) -> Decoder:
        """A model of random weights for a config; room is made when its size is known. Raises what
        `make_dummy_model` raises.
        """
        key = (path, dtype, activations, scheme or "")
        if key not in self._models:
            model = make_dummy_model(
                path,
                dtype=dtype,
                scheme=scheme,
                device=self._device,
                activations=activations,
            )
            self._make_room(_num_bytes(model))
            self._models[key] = (model, _num_bytes(model))
        return self._used_now(key)

    def leave_free(self, num_bytes: int) -> None:
        """Let go of models until the host has so much memory for others, as far as they help."""
        while self._models and psutil.virtual_memory().available < num_bytes:
            self._models.popitem(last=False)

    def _used_now(self, key: _Key) -> Decoder:
        self._models.move_to_end(key)
        return self._models[key][0]

    def _make_room(self, num_bytes: int) -> None:
        while self._models and self._used_bytes() + num_bytes > self._budget_bytes:
            self._models.popitem(last=False)

    def _used_bytes(self) -> int:
        return sum(num_bytes for _, num_bytes in self._models.values())


def _num_bytes(model: Decoder) -> int:
    """Of a model in memory, where an output head that is tied is the embedding itself."""
    is_tied = model.config.tie_word_embeddings
    return model.weight_bytes + (0 if is_tied else model.embedding.nbytes)


def _estimated_bytes(path: Path, dtype: str) -> int:
    """Memory of a checkpoint once loaded, at most: quantized layers may be dequantized."""
    reader = open_checkpoint(path)
    return sum(
        parameters * DTYPES.get(dtype, torch.float32).itemsize
        for parameters, _ in tensor_sizes(reader, quantized_weights(reader)).values()
    )
