"""A GGUF job: which block type each tensor gets, the encoding of a block's layers, and the file.

Knows the mixes and the container; knows nothing of where importances come from.
Law: what a journal holds of a matrix is what the file will hold, up to the order of its rows.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from llmopt.errors import OutputError
from llmopt.formats.checkpoint import CheckpointReader
from llmopt.formats.gguf import GgufCheckpoint
from llmopt.formats.gguf_blocks import GgmlType, GgufWeight, ggml_type
from llmopt.formats.gguf_header import GgufField
from llmopt.formats.quantized import StoredWeight
from llmopt.models.gguf_export import ExportedTensor, GgufExport, export_gguf
from llmopt.models.tokenizer import load_tokenizer
from llmopt.quantize.block_task import BlockTask, LayerTask, Needs
from llmopt.quantize.calibration import CalibrationData
from llmopt.quantize.gguf_encode import encode
from llmopt.quantize.gguf_mix import find_mix, tensor_type
from llmopt.quantize.identity import source_name
from llmopt.quantize.layout import Place
from llmopt.quantize.options import ModuleRecord, QuantizedModule
from llmopt.quantize.packing import PackedBlock, weight_digest
from llmopt.quantize.statistics import InputStatistics

_ROWS = 4096  # that are encoded at a time
_SKIPPED = "f16"  # what a matrix is stored in that an override leaves alone


@dataclass(frozen=True, slots=True)
class GgufPlan:
    """What each matrix of a model becomes.

    types: of the matrices, by their names in the checkpoint; all other tensors are float32
    shapes: of all tensors
    """

    mix: str
    pre: str | None
    types: Mapping[str, GgmlType]
    shapes: Mapping[str, tuple[int, ...]]

    def pack(self, module: str, weight: StoredWeight) -> dict[str, Tensor]:
        """The blocks of one layer, named `module.weight`."""
        assert isinstance(weight, GgufWeight), "the job encodes blocks"
        return {f"{module}.weight": weight.blocks}

    def type_of(self, tensor: str) -> GgmlType:
        """The type of a tensor of the checkpoint."""
        return self.types.get(tensor, ggml_type("f32"))

    def num_bytes(self, tensor: str) -> int:
        """The size of a tensor in the file."""
        *rows, columns = self.shapes[tensor]
        return self.type_of(tensor).row_bytes(columns) * (rows[0] if rows else 1)


def check_tokenizer(source: CheckpointReader, pre: str | None) -> None:
    """Raise `ModelError` for a tokenizer that the format cannot express."""
    export = GgufExport(source.config)
    export.metadata(
        load_tokenizer(source.path), name=source_name(source.path), file_type=0, pre=pre
    )


def plan_gguf(
    config: Mapping[str, Any],
    shapes: Mapping[str, tuple[int, ...]],
    mix: str,
    pre: str | None,
    skipped: Collection[str],
) -> GgufPlan:
    """Choose the types of a model's tensors, as llama.cpp does; `skipped` modules are not encoded.

    Raises `QuantizationError` for an unknown mix, `ModelError` for a model that the format cannot
    express, `CheckpointError`.
    """
    chosen, export = find_mix(mix), GgufExport(config)
    tensors = export.tensors(shapes)
    has_head = any(tensor.name == "lm_head.weight" for tensor in tensors)
    num_heads = config["num_attention_heads"]

    def choose(tensor: ExportedTensor) -> GgmlType:
        if tensor.name.removesuffix(".weight") in skipped:
            return ggml_type(_SKIPPED)
        name = tensor_type(
            chosen.name,
            tensor.ggml_name,
            tensor.shape,
            layer=tensor.layer,
            num_layers=config["num_hidden_layers"],
            tied=not has_head,
            num_heads=num_heads,
            num_kv_heads=config.get("num_key_value_heads") or num_heads,
            arch=export.architecture.name,
            has_importance=True,
        )
        return ggml_type(name)

    types = {tensor.name: choose(tensor) for tensor in tensors if tensor.is_matrix}
    return GgufPlan(chosen.name, pre, types, {tensor.name: tensor.shape for tensor in tensors})


@dataclass(frozen=True, slots=True)
class GgufQuantizer:
    """Encodes the layers of a block (`BlockQuantizer`)."""

    plan: GgufPlan

    @property
    def needs(self) -> Needs:
        """The mean square of the inputs: what llama.cpp calls an importance matrix."""
        return Needs(statistics=True)

    def scale(self, _task: BlockTask, _place: Place, _statistics: InputStatistics, /) -> None:
        """Nothing is scaled."""

    def round(
        self, task: LayerTask, place: Place, statistics: InputStatistics | None, /
    ) -> Sequence[QuantizedModule]:
        """Encode the modules of a layer that are stored in blocks."""
        assert statistics is not None, "statistics are gathered where they are needed"
        modules = []
        for name, weight in task.parts(place):
            kind = self.plan.type_of(f"{name}.weight")
            if kind.layout is None:
                continue
            blocks = encode(weight, kind.name, statistics.mean_square, name=name)
            record = ModuleRecord(name, kind.bits_per_weight, None, blocks.label)
            modules.append(QuantizedModule(blocks, record))
        return modules


def _importance_facts(
    calibration: CalibrationData, blocks: Sequence[PackedBlock]
) -> dict[str, GgufField]:
    """What llama.cpp's quantizer notes of an importance matrix: its text, tensors and samples."""
    num_entries = sum(len(block.modules) for block in blocks)
    return {
        "quantize.imatrix.dataset": GgufField.string(calibration.source),
        "quantize.imatrix.entries_count": GgufField.uint32(num_entries),
        "quantize.imatrix.chunks_count": GgufField.uint32(calibration.num_samples),
    }


def encode_rows(weight: Tensor, kind: GgmlType, name: str) -> GgufWeight:
    """Encode a matrix [O, K] without importances, some rows at a time: it may be as large as the
    vocabulary, and rows are encoded by themselves.
    """
    parts = [encode(rows.float(), kind.name, name=name) for rows in torch.split(weight, _ROWS)]
    blocks = torch.cat([part.blocks for part in parts])
    return GgufWeight(blocks, kind, (weight.shape[0], weight.shape[1]))


def write_gguf(
    path: Path,
    plan: GgufPlan,
    source: CheckpointReader,
    blocks: Sequence[PackedBlock],
    calibration: CalibrationData | None = None,
) -> None:
    """Write the file and read it back. Raises `OutputError` unless it is what was intended.

    calibration: the data that importances are from, which the file then names
    """
    tensors = {name: tensor for block in blocks for name, tensor in block.tensors.items()}

    def encoded(name: str, content: Tensor, kind: GgmlType) -> GgufWeight:
        found = tensors.get(name)
        if found is None:  # embedding and head
            return encode_rows(content, kind, name)
        return GgufWeight(found, kind, (content.shape[0], content.shape[1]))

    export_gguf(
        source,
        load_tokenizer(source.path),
        path,
        name=source_name(source.path),
        file_type=find_mix(plan.mix).file_type,
        choose=lambda tensor: plan.types[tensor.name],
        encode=encoded,
        pre=plan.pre,
        extra=None if calibration is None else _importance_facts(calibration, blocks),
    )
    written = GgufCheckpoint(path)
    for module in (module for block in blocks for module in block.modules):
        weight = written.weight(module.record.name)
        if weight is None or weight_digest(weight) != module.digest:
            raise OutputError(
                f"{path}: {module.record.name} does not read back as it was written",
                "The disk or the memory is faulty; remove the directory and quantize again.",
            )
