"""Statistics of the source's layers on disk, so that another method needs no forward pass.

One directory per model, calibration data and settings, named by their hash; in it, for each layer
of a block, a file of vectors and one of the Hessian. Knows nothing of how they are computed or
used. Laws: a file appears under its name only when it is whole; what does not match its checksum
is as if it were not there; a full disk stops the cache, never the run.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from llmopt.errors import OutputError
from llmopt.formats.staging import output_errors
from llmopt.hardware.cache import cache_directory
from llmopt.models.config import ModelConfig
from llmopt.quantize.layout import Place, layer_widths
from llmopt.quantize.packing import tensor_digest
from llmopt.quantize.statistics import InputStatistics

STATISTICS_VERSION = 1  # grows when statistics are computed in another way
_VECTORS, _HESSIAN = "vectors", "hessian"


def statistics_directory() -> Path:
    """Return where statistics of all models lie."""
    return cache_directory() / "statistics"


def statistics_key(settings: Mapping[str, object]) -> str:
    """Return the name of the directory for a model, calibration data and settings."""
    content = json.dumps({"version": STATISTICS_VERSION, **settings}, sort_keys=True)
    return hashlib.sha256(content.encode()).hexdigest()[:32]


class StatisticsCache:
    """The statistics of one model on one set of calibration tokens."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._writable = True

    def is_whole(self, block: int, *, hessian: bool) -> bool:
        """Whether all layers of a block are there, and as they were written."""
        kinds = (_VECTORS, _HESSIAN) if hessian else (_VECTORS,)
        return all(_is_whole(self._path(block, place, kind)) for place in Place for kind in kinds)

    def read(self, block: int, place: Place, *, hessian: bool) -> InputStatistics:
        """Return the statistics of a layer's inputs; for blocks that are whole."""
        found = load_file(self._path(block, place, _VECTORS))
        if hessian:
            found |= load_file(self._path(block, place, _HESSIAN))
        return InputStatistics(
            mean_magnitude=found["mean_magnitude"],
            mean_square=found["mean_square"],
            largest=found["largest"],
            hessian=found.get(_HESSIAN),
            sample=found.get("sample"),
        )

    def write(self, block: int, place: Place, statistics: InputStatistics) -> None:
        """Keep the statistics of a layer's inputs, as long as the disk takes them."""
        vectors = {
            "mean_magnitude": statistics.mean_magnitude,
            "mean_square": statistics.mean_square,
            "largest": statistics.largest,
        }
        if statistics.sample is not None:
            vectors["sample"] = statistics.sample
        self._save(self._path(block, place, _VECTORS), vectors)
        if statistics.hessian is not None:
            self._save(self._path(block, place, _HESSIAN), {_HESSIAN: statistics.hessian})

    def free_bytes(self) -> int:
        """Return the free space of the disk that it lies on."""
        existing = next(p for p in (self.directory, *self.directory.parents) if p.exists())
        return shutil.disk_usage(existing).free

    def _path(self, block: int, place: Place, kind: str) -> Path:
        return self.directory / f"block-{block:05d}-{place.name.lower()}-{kind}.safetensors"

    def _save(self, path: Path, tensors: Mapping[str, Tensor]) -> None:
        if not self._writable or path.exists():
            return
        stored = {name: tensor.cpu().contiguous() for name, tensor in tensors.items()}
        metadata = {name: tensor_digest(tensor) for name, tensor in stored.items()}
        partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
        try:
            with output_errors(path):
                path.parent.mkdir(parents=True, exist_ok=True)
                save_file(stored, partial, metadata=metadata)
                partial.rename(path)
        except OutputError:
            self._writable = False
        finally:
            partial.unlink(missing_ok=True)


def cache_bytes(config: ModelConfig, sample_tokens: int, *, hessian: bool) -> int:
    """Return the size of all statistics of a model."""
    widths = layer_widths(config).values()
    per_block = sum(3 * width + (width * width if hessian else 0) for width in widths)
    values = config.num_layers * (per_block + 2 * sample_tokens * config.hidden_size)
    return values * torch.float32.itemsize


def _is_whole(path: Path) -> bool:
    try:
        with safe_open(path, framework="pt") as file:
            digests = file.metadata() or {}
            return all(
                digests.get(name) == tensor_digest(file.get_tensor(name))
                for name in file.keys()  # noqa: SIM118 - no dict
            )
    except (OSError, SafetensorError):
        return False
