"""A model of a Hugging Face checkpoint, as a GGUF file.

Knows nothing of how blocks are chosen: the caller names a type for each tensor and encodes what is
not a plain number. The law: llama.cpp computes from the file what transformers computes from the
checkpoint, up to the rounding of the chosen types.
"""

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch

from llmopt.errors import CheckpointError, ModelError, QuantizationError
from llmopt.formats.gguf_blocks import GGML_TYPES, GgmlType, GgufWeight
from llmopt.formats.gguf_config import metadata_of_config
from llmopt.formats.gguf_header import GgufField, TensorPlan
from llmopt.formats.gguf_names import (
    ROPE_FACTORS,
    Content,
    GgufArchitecture,
    architecture_of,
    permute_rows,
)
from llmopt.formats.gguf_rope import llama3_factors, rope_of_config
from llmopt.formats.gguf_writer import GgufWriter
from llmopt.models.architectures import ARCHITECTURES
from llmopt.models.gguf_vocabulary import vocabulary_metadata
from llmopt.models.tokenizer import Tokenizer

FILE_TYPES: Mapping[str, int] = {"f32": 0, "f16": 1, "bf16": 32}  # general.file_type
_F32 = GGML_TYPES["f32"]
_BLOCK = re.compile(r"model\.layers\.(\d+)\.")


class Source(Protocol):
    """A checkpoint in full precision: `CheckpointReader`, or what stands in for one."""

    @property
    def config(self) -> dict[str, Any]:
        """config.json."""

    def names(self) -> list[str]:
        """Names of all tensors."""

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of one tensor."""

    def tensor(self, name: str) -> torch.Tensor:
        """One tensor."""


@dataclass(frozen=True, slots=True)
class ExportedTensor:
    """A tensor of the checkpoint that the file will have."""

    name: str  # in the checkpoint
    ggml_name: str
    shape: tuple[int, ...]
    layer: int | None

    @property
    def is_matrix(self) -> bool:
        """Whether it may be stored in another type than f32."""
        return len(self.shape) == 2

    def plan(self, ggml_type: GgmlType) -> TensorPlan:
        """How it is stored; vectors are always f32."""
        return TensorPlan(self.ggml_name, self.shape, ggml_type if self.is_matrix else _F32)


Choose = Callable[[ExportedTensor], GgmlType]  # asked for matrices only
Encode = Callable[[str, torch.Tensor, GgmlType], GgufWeight]  # name and rows of the checkpoint


class GgufExport:
    """What becomes of a model: which tensors, which metadata, and the order of the rows.

    config: config.json. Raises ModelError: an architecture or a setting that GGUF or llama.cpp
    cannot express.
    """

    def __init__(self, config: Mapping[str, Any]) -> None:
        name = (config.get("architectures") or ["(none named)"])[0]
        self.architecture: GgufArchitecture = architecture_of(name)
        self._config = {**ARCHITECTURES[name].defaults, **config}
        metadata_of_config(self._config, file_type=0)

    def metadata(
        self, tokenizer: Tokenizer, *, name: str, file_type: int, pre: str | None = None
    ) -> dict[str, GgufField]:
        """All metadata. name: for people; file_type: GGUF's number for the mix of types; pre:
        llama.cpp's name of the pre-tokenizer, if it is given. Raises ModelError.
        """
        own = metadata_of_config(self._config, file_type=file_type)
        vocab_size = self._config["vocab_size"]
        return (
            own
            | {"general.name": GgufField.string(name)}
            | vocabulary_metadata(tokenizer, vocab_size=vocab_size, pre=pre)
        )

    def tensors(self, shapes: Mapping[str, tuple[int, ...]]) -> list[ExportedTensor]:
        """The tensors of the file in its order: embedding, blocks, norm, head.

        shapes: of all tensors of the checkpoint. Raises ModelError for a tensor that llama.cpp has
        no place for, CheckpointError for one that is missing.
        """
        found: dict[str, ExportedTensor] = {}
        for name, shape in shapes.items():
            if name == "lm_head.weight" and self._config.get("tie_word_embeddings"):
                continue
            ggml_name = self.architecture.to_ggml(name)
            if ggml_name is None:
                raise ModelError(
                    f"the tensor {name} has no place in a GGUF {self.architecture.name} model",
                    "Choose another format.",
                )
            block = _BLOCK.match(name)
            layer = int(block[1]) if block else None
            found[name] = ExportedTensor(name, ggml_name, shape, layer)
        self._require_complete(found)
        return sorted(found.values(), key=_position)

    def rope_factors(self) -> tuple[TensorPlan, torch.Tensor] | None:
        """The table of rotary factors, for a model that has one."""
        rope = rope_of_config(self._config)
        if rope.scaling is None or rope.scaling["rope_type"] != "llama3":
            return None
        num_heads, hidden_size = self._config["num_attention_heads"], self._config["hidden_size"]
        head_dim = int(self._config.get("head_dim") or hidden_size // num_heads)
        factors = llama3_factors(rope.scaling, rope.theta, head_dim)
        return TensorPlan(ROPE_FACTORS, tuple(factors.shape), _F32), factors

    def convert(self, name: str, content: Content) -> Content:
        """llama.cpp's form of a tensor of the checkpoint, or of a matrix already in blocks."""
        heads = self.architecture.heads(
            name,
            self._config["num_attention_heads"],
            self._config.get("num_key_value_heads") or self._config["num_attention_heads"],
        )
        if heads is not None:
            content = permute_rows(content, heads)
        shift = self.architecture.shift(name)
        return content.float() + shift if shift and isinstance(content, torch.Tensor) else content

    def _require_complete(self, found: Iterable[str]) -> None:
        names = set(found)
        prefixes = [f"model.layers.{i}" for i in range(self._config["num_hidden_layers"])]
        modules = [f"{prefix}.{stem}" for prefix in prefixes for stem in self.architecture.blocks]
        for module in ["model.embed_tokens", *modules, "model.norm"]:
            if f"{module}.weight" not in names:
                raise CheckpointError(
                    f"the checkpoint has no {module}.weight",
                    "It is incomplete, or quantized; give the full-precision model.",
                )


def _position(tensor: ExportedTensor) -> tuple[int, int, str]:
    ends = {"model.embed_tokens.weight": -1, "model.norm.weight": 1, "lm_head.weight": 2}
    return ends.get(tensor.name, 0), tensor.layer or 0, tensor.ggml_name


def export_gguf(
    source: Source,
    tokenizer: Tokenizer,
    out: Path,
    *,
    name: str,
    file_type: int,
    choose: Choose,
    encode: Encode,
    pre: str | None = None,
    extra: Mapping[str, GgufField] | None = None,
) -> None:
    """Write a checkpoint as a GGUF file, one tensor in memory at a time.

    choose: the type of each matrix. encode: a matrix [O, K] in the checkpoint's order of rows as
    blocks; it is asked for types that are not plain numbers. name, file_type, pre: as in
    `GgufExport.metadata`; extra: more metadata, such as where an importance matrix is from. Raises
    ModelError, CheckpointError, QuantizationError (a type that does not fit a tensor), OutputError.
    """
    export = GgufExport(source.config)
    metadata = export.metadata(tokenizer, name=name, file_type=file_type, pre=pre) | dict(
        extra or {}
    )
    tensors = export.tensors({name: source.shape(name) for name in source.names()})
    plans = [tensor.plan(choose(tensor) if tensor.is_matrix else _F32) for tensor in tensors]
    factors = export.rope_factors()
    first = [] if factors is None else [factors[0]]
    with GgufWriter(out, metadata, [*first, *plans]) as writer:
        if factors is not None:
            writer.add(factors[0].name, factors[1])
        for tensor, plan in zip(tensors, plans, strict=True):
            content = source.tensor(tensor.name)
            if plan.type.dtype is None:
                blocks = encode(tensor.name, content, plan.type)
                writer.add(plan.name, export.convert(tensor.name, blocks))
            else:
                converted = export.convert(tensor.name, content)
                writer.add(plan.name, as_plain(plan.name, converted, plan.type))


def as_plain(name: str, tensor: torch.Tensor, ggml_type: GgmlType) -> torch.Tensor:
    """A tensor in the dtype of a plain type. Raises QuantizationError: a NaN, an infinity, or a
    number that float16 cannot hold.
    """
    assert ggml_type.dtype is not None, "blocks are encoded, not converted"
    converted = tensor.to(ggml_type.dtype)
    if not torch.isfinite(converted).all():
        raise QuantizationError(
            f"{name} has a number that {ggml_type.name} cannot hold, or a NaN or infinity",
            "Use bf16 or f32 instead of f16, and check the source model.",
        )
    return converted
