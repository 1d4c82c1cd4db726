"""A GGUF file, seen as the Hugging Face checkpoint that it was made from.

Knows nothing about running or quantizing models. Read only. The law: whatever comes out equals what
a Hugging Face checkpoint of the same model would hold, so llama.cpp's own names, its order of the
query and key rows and its shifted norms never leave this file; quantized matrices stay quantized.
"""

import math
from pathlib import Path
from typing import Any

import numpy as np
import torch

from llmopt.errors import CheckpointError
from llmopt.formats.gguf_blocks import GGML_TYPES, GgmlType, GgufWeight
from llmopt.formats.gguf_config import ConfigReader
from llmopt.formats.gguf_header import (
    GgufError,
    GgufValue,
    TensorInfo,
    byte_shape,
    map_header,
)
from llmopt.formats.gguf_names import ROPE_FACTORS, Content, unpermute_rows
from llmopt.formats.gguf_rope import Scaling, llama3_scaling

_REMEDY = "Fetch the file again, or use a safetensors checkpoint of the model."
_DTYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
_TYPE_OF_ID = {ggml_type.id: ggml_type for ggml_type in GGML_TYPES.values()}


class GgufCheckpoint:
    """Lazy access to the tensors and the config of one GGUF file, as `CheckpointReader` gives it.

    config: the config.json of the same model; its dtype is that of the matrices, bfloat16 where
    they are quantized.

    Raises CheckpointError: the file is missing, truncated, corrupt, one part of several, of another
    architecture, or uses a feature that the architecture does not have in transformers.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        try:
            self._header, self._data = map_header(self.path)
        except (OSError, GgufError) as error:
            raise self._refusal(str(error)) from error
        try:
            self._require_whole()
            self._reader = ConfigReader(self.metadata)
            self._info_of = self._by_hf_name()
            self.config = self._build_config()
        except GgufError as error:
            raise self._refusal(str(error)) from error

    @property
    def metadata(self) -> dict[str, GgufValue]:
        """All key-value pairs of the header, under GGUF's own keys."""
        return self._header.metadata

    @property
    def files(self) -> list[Path]:
        """The file."""
        return [self.path]

    @property
    def num_bytes(self) -> int:
        """Its size on disk."""
        return len(self._data)

    def header_bytes(self, _file: Path, /) -> int:
        """Bytes in front of the data of the tensors."""
        return min(info.offset for info in self._header.tensors.values())

    def names(self) -> list[str]:
        """Hugging Face names of all tensors, in the order of the file."""
        return list(self._info_of)

    def __contains__(self, name: str) -> bool:
        return name in self._info_of

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of a tensor, from the header."""
        return self._info(name).shape

    def dtype(self, name: str) -> torch.dtype:
        """What `tensor` gives: the stored dtype, or float32 for blocks."""
        return _DTYPES.get(self.quantization(name), torch.float32)

    def tensor_bytes(self, name: str) -> int:
        """Bytes of a tensor as it is stored."""
        return self._info(name).num_bytes

    def quantization(self, name: str) -> str:
        """GGUF's name for how a tensor is stored, such as "Q4_1"."""
        return str(self._info(name).quantization.name)

    def tensor(self, name: str) -> torch.Tensor:
        """One tensor in Hugging Face's order of rows; dequantized to float32 if it is in blocks."""
        info = self._info(name)
        plain = _DTYPES.get(info.quantization.name)
        values = self._dequantize(info) if plain is None else self._raw(info).view(plain)
        values = self._in_hf_order(name, values.reshape(info.shape))
        shift = self._reader.architecture.shift(name)
        return values - shift if shift else values

    def ggml_type(self, name: str) -> GgmlType | None:
        """The type of a tensor's blocks; None for plain numbers, and for blocks that only `tensor`
        can decode.
        """
        kind = _TYPE_OF_ID.get(int(self._info(name).quantization))
        return None if kind is None or kind.dtype is not None else kind

    def weight(self, module: str) -> GgufWeight | None:
        """A quantized matrix in its blocks, or None if it has no `ggml_type`."""
        name = f"{module}.weight"
        kind = self.ggml_type(name) if name in self and len(self.shape(name)) == 2 else None
        if kind is None:
            return None
        info = self._info(name)
        rows, columns = info.shape
        blocks = GgufWeight(self._raw(info).reshape(rows, -1), kind, (rows, columns))
        return self._in_hf_order(name, blocks)

    def quantized(self) -> "GgufWeights | None":
        """The quantized layers, or None where there are none."""
        weights = GgufWeights(self)
        stems = (name.removesuffix(".weight") for name in self.names())
        return weights if any(stem in weights for stem in stems) else None

    def _raw(self, info: TensorInfo) -> torch.Tensor:
        """A copy of the bytes of a tensor, uint8."""
        return torch.from_numpy(self._bytes(info).copy())

    def _bytes(self, info: TensorInfo) -> np.ndarray[Any, np.dtype[np.uint8]]:
        return np.frombuffer(self._data, np.uint8, info.num_bytes, info.offset)

    def _dequantize(self, info: TensorInfo) -> torch.Tensor:
        from gguf import dequantize

        try:
            values = dequantize(self._bytes(info).reshape(byte_shape(info)), info.quantization)
        except NotImplementedError as error:
            raise self._refusal(
                f"tensor {info.name} has the type {info.quantization.name}, which cannot be read"
            ) from error
        return torch.from_numpy(np.array(values, dtype=np.float32))

    def _in_hf_order(self, name: str, rows: Content) -> Content:
        heads = self._reader.architecture.heads(
            name, self.config["num_attention_heads"], self.config["num_key_value_heads"]
        )
        if heads is None:
            return rows
        if rows.shape[0] % (2 * heads):
            raise self._refusal(f"{name} has {rows.shape[0]} rows for {heads} heads")
        return unpermute_rows(rows, heads)

    def _info(self, name: str) -> TensorInfo:
        if name not in self._info_of:
            raise self._refusal(f"it has no tensor {name}")
        return self._info_of[name]

    def _require_whole(self) -> None:
        parts = self.metadata.get("split.count", 1)
        if isinstance(parts, int) and parts > 1:
            raise GgufError(
                f"it is one of {parts} parts, which llama-gguf-split --merge makes into one file"
            )

    def _by_hf_name(self) -> dict[str, TensorInfo]:
        architecture = self._reader.architecture
        found: dict[str, TensorInfo] = {}
        for name, info in self._header.tensors.items():
            hf_name = architecture.to_hf(name)
            if hf_name is not None:
                found[hf_name] = info
            elif name != ROPE_FACTORS or architecture.name != "llama":
                raise GgufError(f"tensor {name} is not part of a plain {architecture.name} model")
        return found

    def _build_config(self) -> dict[str, Any]:
        tensors = self._header.tensors
        if "token_embd.weight" not in tensors:
            raise GgufError("it has no token embedding")
        if self._reader.integer("block_count") > len(tensors):
            raise GgufError("it has more layers than tensors")
        biased = (name.split(".")[-2] for name in tensors if name.endswith(".bias"))
        config = self._reader.config(
            vocab_size=tensors["token_embd.weight"].shape[0],
            tied="output.weight" not in tensors,
            scaling=self._rope_scaling(),
            biased=frozenset(biased),
        )
        dtypes = {_DTYPES.get(info.quantization.name) for info in tensors.values()}
        plain = dtypes & {torch.float16, torch.bfloat16} or dtypes
        dtype = torch.bfloat16 if None in dtypes or len(plain) > 1 else plain.pop()
        return config | {"dtype": str(dtype).removeprefix("torch.")}

    def _rope_scaling(self) -> Scaling | None:
        info = self._header.tensors.get(ROPE_FACTORS)
        if info is None:
            return None
        if info.quantization.name != "F32" or info.shape != (self._reader.head_dim // 2,):
            raise GgufError(f"{ROPE_FACTORS} is not a number for each pair of channels of a head")
        theta = self._reader.real("rope.freq_base", 10000.0)
        return llama3_scaling(self._raw(info).view(torch.float32), theta)

    def _refusal(self, reason: str) -> CheckpointError:
        size = self.path.stat().st_size if self.path.is_file() else 0
        return CheckpointError(f"{self.path} ({size:,} bytes) cannot be read: {reason}", _REMEDY)


class GgufWeights:
    """The quantized layers of a GGUF file, as `formats.weights` gives those of other formats."""

    def __init__(self, reader: GgufCheckpoint) -> None:
        self._reader = reader

    @property
    def scheme(self) -> str:
        """Such as "gguf-q4_k_m", after the mix that the file says it is."""
        from gguf import LlamaFileType

        number = self._reader.metadata.get("general.file_type")
        names = {int(kind): str(kind.name) for kind in LlamaFileType}
        name = names.get(number, "mixed") if isinstance(number, int) else "mixed"
        return f"gguf-{name.removeprefix('MOSTLY_').lower()}"

    def __contains__(self, module: str) -> bool:
        name = f"{module}.weight"
        if name not in self._reader or len(self._reader.shape(name)) != 2:
            return False
        return self._reader.ggml_type(name) is not None

    def weight(self, module: str) -> GgufWeight:
        """Read one layer. Raises CheckpointError."""
        weight = self._reader.weight(module)
        assert weight is not None, f"{module} is quantized"
        return weight

    def module_of(self, tensor_name: str) -> str | None:
        """The quantized layer that a tensor is a part of, or None."""
        module = tensor_name.removesuffix(".weight")
        return module if module != tensor_name and module in self else None

    def num_weights(self, module: str) -> int:
        """Weights of one layer, from the header."""
        return math.prod(self._reader.shape(f"{module}.weight"))
