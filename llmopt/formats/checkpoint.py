"""Reading and writing of model directories: config.json beside safetensors shards.

Knows nothing of models or quantization. Files are untrusted: only safetensors are opened, and a
header that does not match its file is refused before any tensor is used. The law of writing: a
directory appears under its final name only when it is complete.
"""

import json
import math
import shutil
from collections.abc import Mapping
from contextlib import AbstractContextManager
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from llmopt.errors import CheckpointError
from llmopt.formats.staging import output_errors, staged_directory, sync

INDEX_NAME = "model.safetensors.index.json"
TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "tokenizer.model",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
)
_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}


class CheckpointReader:
    """Lazy access to the tensors and the config of a model directory.

    Raises CheckpointError for whatever is missing, truncated or inconsistent, when it is opened
    (headers) or when a tensor is read (data).
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self._shard_of = _locate_tensors(self.path)
        self._open: dict[Path, Any] = {}

    @cached_property
    def config(self) -> dict[str, Any]:
        """config.json."""
        return read_json(self.path / "config.json")

    def names(self) -> list[str]:
        """Names of all tensors, in the order of the files."""
        return list(self._shard_of)

    def __contains__(self, name: str) -> bool:
        return name in self._shard_of

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of a tensor, from the header."""
        return tuple(self._slice(name).get_shape())

    def dtype(self, name: str) -> torch.dtype:
        """Data type of a tensor, from the header. CheckpointError for one that is not read here."""
        stored = self._slice(name).get_dtype()
        if stored not in _DTYPES:
            raise CheckpointError(
                f"tensor {name} of {self.path} has the type {stored}, which is not read",
                f"Use a checkpoint with tensors of {', '.join(_DTYPES)}.",
            )
        return _DTYPES[stored]

    def tensor(self, name: str) -> torch.Tensor:
        """Read one tensor to the CPU (memory-mapped: pages are read when touched)."""
        shard = self._shard(name)
        try:
            tensor: torch.Tensor = self._handle(shard).get_tensor(name)
        except (SafetensorError, OSError) as error:
            raise _damaged(shard, str(error)) from error
        return tensor

    def tensor_bytes(self, name: str) -> int:
        """Bytes of a tensor as it is stored. Raises what `dtype` raises."""
        return math.prod(self.shape(name)) * self.dtype(name).itemsize

    @property
    def files(self) -> list[Path]:
        """The shards, in order."""
        return sorted(set(self._shard_of.values()))

    @property
    def num_bytes(self) -> int:
        """Total size of the shards on disk."""
        return sum(file.stat().st_size for file in self.files)

    def header_bytes(self, shard: Path) -> int:
        """Bytes in front of the data of one of `files`."""
        with shard.open("rb") as stream:
            return 8 + int.from_bytes(stream.read(8), "little")

    def _shard(self, name: str) -> Path:
        if name not in self._shard_of:
            raise CheckpointError(
                f"tensor {name} is not in the checkpoint {self.path}",
                "The checkpoint is incomplete or of another architecture; fetch or make it again.",
            )
        return self._shard_of[name]

    def _slice(self, name: str) -> Any:
        return self._handle(self._shard(name)).get_slice(name)

    def _handle(self, shard: Path) -> Any:
        if shard not in self._open:
            self._open[shard] = _open_shard(shard)
        return self._open[shard]


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file; CheckpointError if it is missing or malformed."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise CheckpointError(
            f"{path} is missing", "Point to a directory with config.json and *.safetensors."
        ) from error
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} cannot be read ({error})", "Fetch it again.") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{path} does not hold a JSON object", "Fetch it again.")
    return content


def _damaged(shard: Path, reason: str) -> CheckpointError:
    size = shard.stat().st_size if shard.exists() else 0
    return CheckpointError(
        f"{shard} ({size:,} bytes) is truncated or damaged ({reason})",
        "Fetch it again or make it again.",
    )


def _open_shard(shard: Path) -> Any:
    try:
        return safe_open(shard, framework="pt")
    except FileNotFoundError as error:
        raise CheckpointError(
            f"{shard} is missing, though the index names it", "Fetch the missing shard."
        ) from error
    except (SafetensorError, OSError) as error:
        raise _damaged(shard, str(error)) from error


def _names_in(shard: Path) -> list[str]:
    return list(_open_shard(shard).keys())


def _locate_tensors(path: Path) -> dict[str, Path]:
    if not path.is_dir():
        raise CheckpointError(
            f"there is no model directory {path}",
            "Give a directory with config.json and *.safetensors.",
        )
    index = path / INDEX_NAME
    if index.exists():
        weight_map = read_json(index).get("weight_map")
        if not isinstance(weight_map, dict) or not all(
            isinstance(file, str) for file in weight_map.values()
        ):
            raise CheckpointError(f"{index} has no usable weight_map", "Fetch it again.")
        return _check_index(path, weight_map)
    shards = sorted(path.glob("*.safetensors"))
    if not shards:
        raise CheckpointError(
            f"{path} holds no *.safetensors file",
            "Only safetensors checkpoints are read; convert the model.",
        )
    return {name: shard for shard in shards for name in _names_in(shard)}


def _check_index(path: Path, weight_map: Mapping[str, str]) -> dict[str, Path]:
    present: dict[str, set[str]] = {}
    for file in sorted(set(weight_map.values())):
        if Path(file).name != file:
            raise CheckpointError(
                f"{path / INDEX_NAME} names {file}, outside the model", "Fetch it again."
            )
        present[file] = set(_names_in(path / file))
    missing = [name for name, file in weight_map.items() if name not in present[file]]
    if missing:
        raise CheckpointError(
            f"{path} lacks {len(missing)} tensors that its index names, such as {missing[0]}",
            "Fetch the checkpoint again.",
        )
    return {name: path / file for name, file in weight_map.items()}


class CheckpointWriter:
    """Write a model directory: `with CheckpointWriter(out) as writer: writer.add(...);
    writer.set_config(...)`.

    Everything goes into a hidden sibling directory that is renamed on success and removed on any
    error. Tensors are flushed to a shard whenever `shard_bytes` are collected. Raises OutputError
    when the target exists, cannot be written, or the disk is full (`expected_bytes`, if given, is
    checked first).
    """

    def __init__(
        self, path: str | Path, *, shard_bytes: int = 4 << 30, expected_bytes: int = 0
    ) -> None:
        self.path = Path(path)
        self._shard_bytes = shard_bytes
        self._expected_bytes = expected_bytes
        self._pending: dict[str, torch.Tensor] = {}
        self._pending_bytes = 0
        self._shards: list[tuple[str, list[str]]] = []
        self._total_bytes = 0
        self._staged: AbstractContextManager[Path] | None = None
        self._staging: Path | None = None
        self._sealed = False

    def __enter__(self) -> Self:
        self._staged = staged_directory(self.path, self._expected_bytes)
        self._staging = self._staged.__enter__()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        assert self._staged is not None, "the writer is a context manager"
        try:
            if kind is None:
                self.seal()
        except BaseException as failure:
            self._staged.__exit__(type(failure), failure, failure.__traceback__)
            raise
        self._staged.__exit__(kind, error, trace)

    def seal(self) -> "CheckpointReader":
        """Write what is pending; returns a reader of the files while they are still unpublished.

        Whoever verifies the files and raises inside the `with` block leaves nothing behind.
        """
        if not self._sealed:
            with output_errors(self.path):
                if self._pending:
                    self._flush()
                self._name_shards()
                sync(self.staging)
            self._sealed = True
        return CheckpointReader(self.staging)

    @property
    def staging(self) -> Path:
        """The directory that is being filled; files put here become part of the checkpoint."""
        assert self._staging is not None, "the writer is a context manager"
        return self._staging

    def add(self, name: str, tensor: torch.Tensor) -> None:
        """Add one tensor (moved to the CPU; written when its shard is full)."""
        assert not self._sealed, "a sealed checkpoint takes no more tensors"
        size = tensor.numel() * tensor.element_size()
        if self._pending and self._pending_bytes + size > self._shard_bytes:
            self._flush()
        self._pending[name] = tensor.detach().cpu().contiguous()
        self._pending_bytes += size

    def set_config(self, config: Mapping[str, Any]) -> None:
        """Write config.json."""
        self.add_json("config.json", config)

    def add_json(self, name: str, content: Mapping[str, Any]) -> None:
        """Write a JSON file beside the weights."""
        with output_errors(self.path):
            (self.staging / name).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")

    def copy_file(self, source: Path) -> None:
        """Copy a file beside the weights, under its own name."""
        with output_errors(self.path):
            shutil.copyfile(source, self.staging / source.name)

    def copy_tokenizer(self, source: Path) -> None:
        """Copy whatever tokenizer files a model directory has, and its generation defaults."""
        for name in (*TOKENIZER_FILES, "generation_config.json"):
            if (source / name).is_file():
                self.copy_file(source / name)

    def _flush(self) -> None:
        name = f"shard-{len(self._shards):05d}.safetensors"
        with output_errors(self.path):
            save_file(self._pending, self.staging / name, metadata={"format": "pt"})
            (self.staging / name).chmod(0o644)  # the library makes files that only the owner reads
            sync(self.staging / name)
        self._shards.append((name, list(self._pending)))
        self._total_bytes += self._pending_bytes
        self._pending, self._pending_bytes = {}, 0

    def _name_shards(self) -> None:
        if len(self._shards) == 1:
            (self.staging / self._shards[0][0]).rename(self.staging / "model.safetensors")
            return
        weight_map: dict[str, str] = {}
        for number, (temporary, names) in enumerate(self._shards, start=1):
            final = f"model-{number:05d}-of-{len(self._shards):05d}.safetensors"
            (self.staging / temporary).rename(self.staging / final)
            weight_map.update(dict.fromkeys(names, final))
        index = {"metadata": {"total_size": self._total_bytes}, "weight_map": weight_map}
        self.add_json(INDEX_NAME, index)
