"""A finished block as the tensors that its checkpoint stores, and what they must read back as.

Knows formats; knows nothing of files or of how codes were chosen.
Law: nothing that is not finite is packed.
"""

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from llmopt.formats.quantized import StoredWeight
from llmopt.quantize.block_task import Finished
from llmopt.quantize.options import ModuleRecord, ReplacedTensor
from llmopt.quantize.rounding import check_finite
from llmopt.quantize.threads import single_thread

_CPU = torch.device("cpu")


class Packer(Protocol):
    """How layers are stored: a `WeightFormat`, or ggml's blocks."""

    def pack(self, module: str, weight: StoredWeight) -> dict[str, Tensor]:
        """The named tensors of one layer."""


@dataclass(frozen=True, slots=True)
class PackedModule:
    """What is known of a module that was packed.

    digest: of the dequantized weight
    num_bytes: of its tensors, which hold `num_weights` weights
    """

    record: ModuleRecord
    digest: str
    num_weights: int
    num_bytes: int


@dataclass(frozen=True, slots=True)
class PackedBlock:
    """A block of one job.

    tensors: of the modules, and the replaced ones, by their names in the checkpoint
    replaced: digests of the tensors that are not quantized, but differ from the source's
    seconds: that the job spent on it; shared_seconds: that were spent for all jobs together
    """

    tensors: dict[str, Tensor]
    modules: tuple[PackedModule, ...]
    replaced: dict[str, str]
    seconds: float = 0.0
    shared_seconds: float = 0.0


@single_thread()
def pack_block(packer: Packer, finished: Iterable[Finished]) -> PackedBlock:
    """Pack what a job finished of a block, on the CPU.

    Raises `QuantizationError` where a weight would dequantize to a NaN or an infinity.
    """
    tensors: dict[str, Tensor] = {}
    modules: list[PackedModule] = []
    replaced: dict[str, str] = {}
    for item in finished:
        if isinstance(item, ReplacedTensor):
            check_finite(f"the new {item.name}", item.tensor)
            tensors[item.name] = item.tensor.cpu().contiguous()
            replaced[item.name] = tensor_digest(tensors[item.name])
            continue
        name, weight = item.record.name, item.weight.to(_CPU)
        packed = packer.pack(name, weight)
        dense = weight.dequantize()
        check_finite(f"the quantized {name}", dense)
        num_bytes = sum(tensor.nbytes for tensor in packed.values())
        facts = PackedModule(item.record, tensor_digest(dense), dense.numel(), num_bytes)
        modules.append(facts)
        tensors.update((key, tensor.contiguous()) for key, tensor in packed.items())
    return PackedBlock(tensors, tuple(modules), replaced)


def weight_digest(weight: StoredWeight) -> str:
    """Return a SHA-256 of a quantized weight's values."""
    return tensor_digest(weight.dequantize())


def tensor_digest(tensor: Tensor) -> str:
    """Return the SHA-256 of a tensor's bytes."""
    return hashlib.sha256(tensor_bytes(tensor).numpy().data).hexdigest()


def tensor_bytes(tensor: Tensor) -> Tensor:
    """View a tensor as bytes, so that equal means bit for bit."""
    return tensor.contiguous().flatten().view(torch.uint8)
