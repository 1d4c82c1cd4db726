"""The model and its base, as `llmopt eval` needs them: found once, loaded when first needed.

Knows nothing about what is measured. The laws: a model is in memory once per dtype, and no more
models than fit; `--activations` is of the model, the base's are never rounded.
"""

from pathlib import Path

import torch

from llmopt.bench.loaded import LoadedModels
from llmopt.cli.evaluate_options import OWN_RUNTIME, Evaluation, runtime
from llmopt.cli.progress import StageProgress
from llmopt.models.decoder import Decoder
from llmopt.models.loader import resolve_device, resolve_dtype
from llmopt.models.resolve import resolve_model
from llmopt.models.tokenizer import Tokenizer, load_tokenizer
from llmopt.quality.compare import open_model
from llmopt.quality.noise import UNROUNDED, noise_dtype


class EvaluationModels:
    """What was asked for, found. Raises ModelError and CheckpointError, UsageError for a device.

    path: of the model, None for one that a server has; base_path: None without a base
    served_scheme: of the weights in another runtime, once that has them
    remarks: what the user should hear when all is done
    """

    def __init__(self, asked: Evaluation, progress: StageProgress) -> None:
        resolve_device(asked.device)
        self.asked = asked
        self.kind, self.url = runtime(asked.backend)
        self.base_path = None if asked.base is None else _find(asked.base, progress)
        self.path = None if self.url is not None else _find(asked.model, progress)
        self.served_scheme: str | None = None
        self.remarks: list[str] = []
        self._loaded = LoadedModels.on(asked.device)

    @property
    def scheme(self) -> str | None:
        """The scheme of the model's weights; None: it was not opened."""
        if self.path is None or self.kind != OWN_RUNTIME:
            return self.served_scheme
        asked = self.asked
        return open_model(
            self.path,
            asked.model,
            dtype=asked.dtype,
            device=asked.device,
            activations=asked.activations,
        ).scheme

    @property
    def base_scheme(self) -> str:
        """The scheme of the base's weights."""
        asked = self.asked
        return open_model(
            self._base_path,
            asked.base or "",
            dtype=asked.base_dtype,
            device=asked.device,
            activations=UNROUNDED,
        ).scheme

    @property
    def base_tokenizer(self) -> Tokenizer:
        """The base's, which every comparison reads with."""
        return load_tokenizer(self._base_path)

    @property
    def tokenizer(self) -> Tokenizer:
        """The model's own."""
        return load_tokenizer(self._path)

    def target(self, dtype: str | None = None) -> Decoder:
        """The model, in the dtype that was asked for or another."""
        return self._loaded.get(self._path, dtype or self.asked.dtype, self.asked.activations)

    def base(self) -> Decoder:
        """The base."""
        return self._loaded.get(self._base_path, self.asked.base_dtype, UNROUNDED)

    def noisy_base(self) -> Decoder | None:
        """The base in 16 bits; None where that is the base itself, or no noise is asked for."""
        base = self.base()
        served = resolve_dtype("auto", base.config, base.device)
        dtype = noise_dtype(_name(served), _name(base.dtype))
        if not self.asked.noise or dtype is None:
            return None
        return self._loaded.get(self._base_path, dtype, UNROUNDED)

    @property
    def _path(self) -> Path:
        assert self.path is not None, "a server's model is not loaded here"
        return self.path

    @property
    def _base_path(self) -> Path:
        assert self.base_path is not None, "without a base nothing is compared"
        return self.base_path


def _find(model: str, progress: StageProgress) -> Path:
    with progress.stage(f"find {model}") as advance:
        return resolve_model(model, advance)


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
