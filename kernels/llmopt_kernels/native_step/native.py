"""The compiled forward pass of one decoder.

Knows nothing of configs or engines. The laws: a call writes nothing but its result and the new keys
and values; its result does not depend on the number of threads.
"""

import ctypes
import weakref
from collections.abc import Sequence

import torch

from llmopt_kernels.native.library import NativeLibrary
from llmopt_kernels.native_step.parts import DecoderParts
from llmopt_kernels.native_step.structs import (
    OPERATIONS,
    BatchStruct,
    BlockGroupStruct,
    Memory,
    integers,
    model_struct,
)
from llmopt_kernels.paged_attention import AttentionMetadata

LayerKV = tuple[torch.Tensor, torch.Tensor]  # bfloat16 [N, S, KH, D]


class CacheAddresses:
    """Where the caches of all layers are. It keeps none of them alive: whoever passes it to a step
    holds them.
    """

    def __init__(self, caches: Sequence[LayerKV]) -> None:
        self._caches = [(weakref.ref(key), weakref.ref(value)) for key, value in caches]
        self.keys = _addresses([key for key, _ in caches])
        self.values = _addresses([value for _, value in caches])

    def are_of(self, caches: Sequence[tuple[object, object]]) -> bool:
        """Whether these are the same caches, and not others where those were."""
        return len(caches) == len(self._caches) and all(
            known_key() is key and known_value() is value
            for (known_key, known_value), (key, value) in zip(self._caches, caches, strict=True)
        )


class StepProfile:
    """Seconds of the calls since it was made, by operation; waiting for other threads included."""

    def __init__(self) -> None:
        self._seconds = (ctypes.c_double * len(OPERATIONS))()

    @property
    def address(self) -> ctypes.c_void_p:
        """What the compiled functions add to."""
        return ctypes.c_void_p(ctypes.addressof(self._seconds))

    @property
    def seconds(self) -> dict[str, float]:
        """By name, in the order in which a step runs."""
        return dict(zip(OPERATIONS, self._seconds, strict=True))


class NativeStep:
    """Hidden states and logits of a decoder with bfloat16 weights, or coded ones."""

    def __init__(self, library: NativeLibrary, parts: DecoderParts) -> None:
        self._library = library
        self._memory = Memory()
        self._model = model_struct(parts, self._memory)
        self._all_in_one_group = integers([0] * self._model.num_layers)

    def forward(
        self,
        token_ids: torch.Tensor,
        positions: torch.Tensor,
        metadata: AttentionMetadata,
        caches: CacheAddresses | None,
        num_threads: int,
        profile: StepProfile | None = None,
    ) -> torch.Tensor:
        """Hidden states float32 [T, C] behind the last layer, not normalized.

        token_ids, positions: int64 [T]. Stores the new keys and values in `caches`, if there are
        any.
        """
        hidden = _floats(len(token_ids), self._model.hidden_size)
        if not len(token_ids):
            return hidden
        memory = Memory()
        batch = self._batch(token_ids, positions, metadata, caches, memory)
        status = self._library.handle.llmopt_step_forward(
            self._library.instruction_set,
            ctypes.byref(self._model),
            ctypes.byref(batch),
            ctypes.c_void_p(hidden.data_ptr()),
            num_threads,
            profile and profile.address,
        )
        assert status == 0, "a token or its position is not in the model's tables"
        return hidden

    def logits(
        self, hidden: torch.Tensor, num_threads: int, profile: StepProfile | None = None
    ) -> torch.Tensor:
        """Logits float32 [R, V] of rows [R, C] of `forward`."""
        hidden = hidden.float().contiguous()
        logits = _floats(len(hidden), self._model.lm_head.out_features)
        if len(hidden):
            self._library.handle.llmopt_step_logits(
                self._library.instruction_set,
                ctypes.byref(self._model),
                ctypes.c_void_p(hidden.data_ptr()),
                ctypes.c_void_p(logits.data_ptr()),
                len(hidden),
                num_threads,
                profile and profile.address,
            )
        return logits

    def _batch(
        self,
        token_ids: torch.Tensor,
        positions: torch.Tensor,
        metadata: AttentionMetadata,
        caches: CacheAddresses | None,
        memory: Memory,
    ) -> BatchStruct:
        batch = BatchStruct(
            token_ids=memory.tensor(token_ids),
            positions=memory.tensor(positions),
            query_lens=memory.array(integers(metadata.query_lens)),
            seq_lens=memory.array(integers(metadata.seq_lens)),
            num_tokens=len(token_ids),
            num_requests=len(metadata.query_lens),
        )
        if caches is not None:
            batch.keys, batch.values = memory.array(caches.keys), memory.array(caches.values)
            groups, of_layer = [metadata], self._all_in_one_group
            if metadata.per_layer:
                groups, of_layer = _distinct(metadata.per_layer)
            structs = [_block_group(group, memory) for group in groups]
            batch.groups = memory.array((BlockGroupStruct * len(structs))(*structs))
            batch.group_of_layer = memory.array(of_layer)
        return batch


def _floats(rows: int, columns: int) -> torch.Tensor:
    """What compiled code writes, whatever torch's defaults are."""
    return torch.empty(rows, columns, dtype=torch.float32, device="cpu")


def _addresses(tensors: Sequence[torch.Tensor]) -> "ctypes.Array[ctypes.c_void_p]":
    assert all(map(torch.Tensor.is_contiguous, tensors)), "compiled code reads whole blocks"
    return (ctypes.c_void_p * len(tensors))(*(tensor.data_ptr() for tensor in tensors))


def _distinct(
    layers: Sequence[AttentionMetadata],
) -> tuple[list[AttentionMetadata], "ctypes.Array[ctypes.c_int32]"]:
    """The metadata that layers share, and the number of that of each layer."""
    groups = {id(layer): layer for layer in layers}
    numbers = {key: number for number, key in enumerate(groups)}
    return list(groups.values()), integers([numbers[id(layer)] for layer in layers])


def _block_group(metadata: AttentionMetadata, memory: Memory) -> BlockGroupStruct:
    slots, tables = metadata.slot_mapping, metadata.block_tables
    assert slots is not None, "a cache comes with slots"
    assert tables is not None, "a cache comes with block tables"
    return BlockGroupStruct(
        slots=memory.tensor(slots.long()),
        block_tables=memory.tensor(tables.int().contiguous()),
        table_stride=tables.shape[1],
        block_size=metadata.block_size,
        window=metadata.max_window or 0,
        num_sinks=metadata.num_sinks,
    )
