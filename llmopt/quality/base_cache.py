"""Log-probabilities of a base on disk, so that comparing another model with it needs no base.

One directory per model and way of running it, named by their hash; in it one file per window. Knows
nothing about statistics of a target. Laws: a file appears under its name only when it is whole; one
that does not match its checksum is as if it were not there; what a window gives is the same whether
it was on disk or not; a full disk stops the cache, never the measurement.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from llmopt import __version__
from llmopt.errors import OutputError
from llmopt.formats.staging import output_errors
from llmopt.formats.weights import Checkpoint
from llmopt.hardware.cache import cache_directory
from llmopt.quality.base_codec import CompactRows, concatenate_rows, decode, encode
from llmopt.quality.divergence import compare_logits
from llmopt.quality.source import LogitSource, WrappedLogits, rows_per_chunk
from llmopt.quality.windows import Window
from llmopt.quantize.identity import hash_files
from llmopt.quantize.packing import tensor_digest

CACHE_VERSION = 1  # grows when the base is computed or stored in another way
MAX_ERROR_NATS = 1e-5  # mean KL(base || stored) of a window; with more the cache is not used
DEFAULT_MAX_BYTES = 16 << 30  # of all bases together
RESERVE_BYTES = 1 << 30  # of the disk, left to others
_COLUMNS = ("codes", "exact_logits", "exact_tokens", "tail")


def base_cache_directory() -> Path:
    """Where the bases of all models lie."""
    return cache_directory() / "base-logits"


def base_cache_key(
    reader: Checkpoint, *, dtype: torch.dtype, device: torch.device, activations: str
) -> str:
    """Name of the directory of one base: of all that decides its logits. Reads the weights whole.

    dtype: that the activations are computed in; activations: what they are rounded to besides
    """
    content = {
        "version": CACHE_VERSION,
        "llmopt": __version__,
        "torch": torch.__version__,
        "weights": hash_files(reader.files),
        "config": reader.config,
        "dtype": str(dtype),
        "device": device.type,
        "activations": activations,
    }
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:32]


@dataclass(frozen=True, slots=True, eq=False)
class _StoredWindow:
    rows: CompactRows
    error_mean: float  # KL(exact || stored), nats per token
    error_max: float


class DiskLogits(WrappedLogits):
    """What a source gave, in compact form, on disk from the first time on.

    The compact form's own error is measured when it is made and kept beside it. From the first
    window on whose error is too large, windows that are not on disk come from the source itself.
    Raises what the source raises.
    """

    def __init__(
        self, source: LogitSource, directory: Path, *, max_bytes: int = DEFAULT_MAX_BYTES
    ) -> None:
        """`max_bytes`: of all directories beside `directory`, and its own."""
        super().__init__(source)
        self.directory = directory
        self.remark: str | None = None  # why something is not on disk, for the user
        self._max_bytes = max_bytes
        self._used_bytes = _directory_bytes(directory.parent)
        self._is_fit = True
        self._error_sum = 0.0
        self._num_rows = 0

    @property
    def error(self) -> float | None:
        """Mean KL(exact || given), nats per token, of all given so far; None: all was exact."""
        return self._error_sum / self._num_rows if self._error_sum else None

    def chunks(self, window: Window) -> Iterator[Tensor]:
        """Logits of the window, relative to each row's maximum when they are compact."""
        path = self.directory / f"{_window_key(window)}.safetensors"
        stored = _read(path, window.num_scored, self.vocab_size)
        if stored is None and self._is_fit:
            stored = self._make(window, path)
        self._num_rows += window.num_scored
        if stored is None:
            yield from self.source.chunks(window)
            return
        self._error_sum += stored.error_mean * window.num_scored
        step = rows_per_chunk(self.vocab_size)
        for start in range(0, window.num_scored, step):
            yield decode(stored.rows.rows(start, start + step))

    def _make(self, window: Window, path: Path) -> _StoredWindow | None:
        """Compute a window and keep it; None if it cannot be kept in compact form."""
        parts, errors = [], []
        columns = torch.split(window.next_tokens, rows_per_chunk(self.vocab_size))
        for logits, tokens in zip(self.source.chunks(window), columns, strict=True):
            if not bool(logits.isfinite().all()):
                return None  # whoever scores it says what is wrong
            parts.append(encode(logits, tokens))
            stored = decode(parts[-1]).to(logits.device)
            errors.append(compare_logits(logits, stored, tokens).kld)
        error = torch.cat(errors)
        made = _StoredWindow(concatenate_rows(parts), float(error.mean()), float(error.max()))
        if made.error_mean >= MAX_ERROR_NATS:
            self._is_fit = False
            self.remark = (
                f"The base's log-probabilities are not kept on disk: in compact form they would "
                f"cost {made.error_mean:.1e} nats of KL divergence, and {MAX_ERROR_NATS:g} is "
                "the limit."
            )
            return None
        self._write(path, made)
        return made

    def _write(self, path: Path, stored: _StoredWindow) -> None:
        """Keep a window, as long as the limit and the disk allow it."""
        if self.remark is not None:
            return
        tensors = {name: getattr(stored.rows, name).contiguous() for name in _COLUMNS}
        num_bytes = sum(tensor.nbytes for tensor in tensors.values())
        metadata = {name: tensor_digest(tensor) for name, tensor in tensors.items()}
        metadata["error_mean"] = repr(stored.error_mean)
        metadata["error_max"] = repr(stored.error_max)
        try:
            with output_errors(path):
                path.parent.mkdir(parents=True, exist_ok=True)
                self.remark = self._refusal(num_bytes)
                if self.remark is None:
                    _save(path, tensors, metadata)
                    self._used_bytes += num_bytes
        except OutputError as error:
            self.remark = f"The base's log-probabilities are not kept on disk: {error.message}."

    def _refusal(self, num_bytes: int) -> str | None:
        """Why so many bytes more are not written."""
        root = self.directory.parent
        if self._used_bytes + num_bytes > self._max_bytes:
            return (
                f"The cache of base log-probabilities is full ({self._used_bytes / 1e9:.1f} of "
                f"{self._max_bytes / 1e9:.1f} GB): remove {root} to make room."
            )
        free = shutil.disk_usage(root).free
        if free - num_bytes < RESERVE_BYTES:
            return (
                f"The base's log-probabilities are not kept on disk: only {free / 1e9:.1f} GB are "
                f"free at {root}."
            )
        return None


def _window_key(window: Window) -> str:
    digest = hashlib.sha256(f"{window.num_scored} of int64\n".encode())
    digest.update(window.token_ids.contiguous().numpy().data)
    return digest.hexdigest()[:32]


def _save(path: Path, tensors: Mapping[str, Tensor], metadata: dict[str, str]) -> None:
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        save_file(dict(tensors), partial, metadata=metadata)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def _read(path: Path, num_rows: int, vocab_size: int) -> _StoredWindow | None:
    """What is on disk of a window; None if nothing is, or not as it was written."""
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in _COLUMNS}
        errors = float(metadata["error_mean"]), float(metadata["error_max"])
    except (OSError, SafetensorError, KeyError, ValueError):
        return None
    if any(metadata.get(name) != tensor_digest(tensor) for name, tensor in tensors.items()):
        return None
    assert tensors["codes"].shape == (num_rows, vocab_size), "the key stands for model and window"
    return _StoredWindow(CompactRows(**tensors), *errors)


def _directory_bytes(root: Path) -> int:
    """Bytes of all files below a directory; what vanishes meanwhile does not count."""
    total = 0
    for folder, _, names in os.walk(root):
        for name in names:
            path = Path(folder, name)
            if path.exists():
                total += path.stat().st_size
    return total
