"""The memory of the key/value cache: how many blocks there are, and the tensors that hold them.

Knows nothing about requests or about who holds which block.
Laws: no more blocks than the largest batch can fill, and a block reads as zeros until it is
written. Moves wait for nothing: on a GPU each is work of the stream that computes, in its order,
and nobody but such moves reads or writes the blocks in host memory.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import psutil
import torch
from torch import Tensor

from llmopt.engine.block_space import BlockMove
from llmopt.engine.config import KVDtypeName
from llmopt.engine.layer_group import LayerGroup
from llmopt.engine.scheduler import SchedulerOutput
from llmopt.engine.staging import to_device
from llmopt.errors import EngineError
from llmopt.models.config import ModelConfig
from llmopt.models.decoder import KVTensors
from llmopt_kernels.store_kv import Int8Cache, KVCache, cache_tensors

_CPU_SHARE = 0.4
_CUDA_SHARE = 0.85
_CACHE_LINE_BYTES = 64
_SCALE_BYTES = torch.bfloat16.itemsize


@dataclass(frozen=True, slots=True)
class KVLayout:
    """What the cache of one layer looks like. `dtype` int8 comes with scales (`Int8Cache`)."""

    num_kv_heads: int
    head_dim: int
    block_size: int
    dtype: torch.dtype

    @property
    def block_bytes(self) -> int:
        """Bytes of one block in one layer: keys and values of `block_size` tokens."""
        per_head = self.head_dim * self.dtype.itemsize
        if self.dtype is torch.int8:
            per_head += _SCALE_BYTES
        return 2 * self.num_kv_heads * self.block_size * per_head


def choose_layout(
    config: ModelConfig, block_size: int, kv_dtype: KVDtypeName, model_dtype: torch.dtype
) -> KVLayout:
    """The layout for a model with activations of `model_dtype`."""
    dtypes = {"auto": model_dtype, "fp8": torch.float8_e4m3fn, "int8": torch.int8}
    return KVLayout(config.num_kv_heads, config.head_dim, block_size, dtypes[kv_dtype])


def most_useful_blocks(
    groups: Sequence[LayerGroup],
    *,
    block_size: int,
    max_num_seqs: int,
    max_model_len: int,
    max_chunk: int,
) -> list[int]:
    """Per group, the blocks that the largest batch of the longest requests holds."""
    return [
        max_num_seqs * group.max_held_blocks(max_model_len, max_chunk, block_size)
        for group in groups
    ]


def choose_num_blocks(
    groups: Sequence[LayerGroup],
    most_useful: Sequence[int],
    *,
    layer_block_bytes: int,
    block_size: int,
    num_blocks: int | None,
    kv_memory_bytes: int | None,
    device: torch.device,
) -> list[int]:
    """The number of blocks of each group.

    `num_blocks` is taken as it is; otherwise `kv_memory_bytes`, or else a share of the memory that
    is free now (0.4 of it on CPU, 0.85 on CUDA, the rest is for activations and others), is filled
    with blocks. All groups get the same number, but a group never gets more than `most_useful`, so
    layers with a window leave their share to the others, and are never the first to run out.

    Raises:
        EngineError: the memory does not hold one block of every group.
    """
    if num_blocks is not None:
        return [
            num_blocks if group.window is None else min(num_blocks, most)
            for group, most in zip(groups, most_useful, strict=True)
        ]
    budget = free_bytes(device) if kv_memory_bytes is None else kv_memory_bytes
    source = "the free memory" if kv_memory_bytes is None else "kv_memory_bytes"
    costs = [len(group.layers) * layer_block_bytes for group in groups]
    if budget < sum(costs):
        raise EngineError(
            f"{source} leaves {budget} bytes for the key/value cache, and one block of"
            f" {block_size} tokens takes {sum(costs)}",
            f"Give kv_memory_bytes of at least {sum(costs)}, or a smaller block_size.",
        )
    return fill_memory(budget, costs, most_useful)


def fill_memory(budget: int, costs: Sequence[int], most: Sequence[int]) -> list[int]:
    """The largest n such that min(n, most[i]) blocks of costs[i] bytes fit together, for each i."""
    unlimited = sorted(range(len(costs)), key=lambda i: most[i])
    chosen = [0] * len(costs)
    while unlimited:
        equal = budget // sum(costs[i] for i in unlimited)
        smallest = unlimited[0]
        if equal < most[smallest]:
            for i in unlimited:
                chosen[i] = equal
            break
        chosen[smallest] = most[smallest]
        budget -= most[smallest] * costs[smallest]
        unlimited.pop(0)
    return chosen


class PagedKV:
    """The tensors of the cache on the device, and of swapped blocks in host memory.

    Args:
        num_blocks: of each group.
        num_host_blocks: of each group; empty: nothing is swapped.

    Raises:
        EngineError: there is not enough memory.
    """

    def __init__(
        self,
        groups: Sequence[LayerGroup],
        num_blocks: Sequence[int],
        layout: KVLayout,
        device: torch.device,
        num_host_blocks: Sequence[int] = (),
    ) -> None:
        self._groups = tuple(groups)
        self._device = device
        self.layers: KVTensors = _allocate(groups, num_blocks, layout, device, pinned=False)
        pinned = device.type == "cuda"
        host = torch.device("cpu")
        self._host_layers: KVTensors = ()
        if num_host_blocks:
            self._host_layers = _allocate(groups, num_host_blocks, layout, host, pinned=pinned)

    def move(self, output: SchedulerOutput) -> None:
        """Do the moves of a step, in the order that `SchedulerOutput` promises."""
        if not (output.swap_outs or output.copies or output.swap_ins):
            return
        with torch.inference_mode():
            self._swap(self.layers, self._host_layers, output.swap_outs)
            self._copy(output.copies)
            self._swap(self._host_layers, self.layers, output.swap_ins)

    def _copy(self, moves: Sequence[BlockMove]) -> None:
        """Copy blocks within the device; of a layer all are read before one is written."""
        for group, pairs in self._by_group(moves):
            read, write = to_device(np.array(pairs, dtype=np.int64).T.copy(), self._device)
            for layer in group.layers:
                for blocks in _byte_tensors(self.layers[layer]):
                    blocks.index_copy_(0, write, blocks.index_select(0, read))

    def _swap(self, sources: KVTensors, targets: KVTensors, moves: Sequence[BlockMove]) -> None:
        """Copy blocks between device and host memory."""
        for group, pairs in self._by_group(moves):
            runs = block_runs(pairs)
            for layer in group.layers:
                both = _byte_tensors(sources[layer]), _byte_tensors(targets[layer])
                for old, new in zip(*both, strict=True):
                    for read, write, count in runs:
                        blocks = old[read : read + count]
                        new[write : write + count].copy_(blocks, non_blocking=True)

    def _by_group(
        self, moves: Sequence[BlockMove]
    ) -> Iterator[tuple[LayerGroup, list[tuple[int, int]]]]:
        """Each group that has moves, with their sources and destinations."""
        for index, group in enumerate(self._groups):
            pairs = [(m.source, m.destination) for m in moves if m.group == index]
            if pairs:
                yield group, pairs


def block_runs(pairs: Sequence[tuple[int, int]]) -> list[tuple[int, int, int]]:
    """Moves (source, destination) as runs (source, destination, number of blocks), each of blocks
    that lie side by side in both memories.
    """
    runs: list[tuple[int, int, int]] = []
    for pair in pairs:
        source, destination, count = runs[-1] if runs else (0, 0, 0)
        if count and pair == (source + count, destination + count):
            runs[-1] = (source, destination, count + 1)
        else:
            runs.append((*pair, 1))
    return runs


def _byte_tensors(caches: tuple[KVCache, KVCache]) -> list[Tensor]:
    """The tensors [N, ...] of keys and values, as bytes: not every operation knows FP8."""
    return [tensor.view(torch.uint8) for cache in caches for tensor in cache_tensors(cache)]


def _allocate(
    groups: Sequence[LayerGroup],
    num_blocks: Sequence[int],
    layout: KVLayout,
    device: torch.device,
    *,
    pinned: bool,
) -> KVTensors:
    """Per layer the key and the value cache, each [N, S, KH, D], all zeros."""
    layers: dict[int, tuple[KVCache, KVCache]] = {}
    try:
        for group, count in zip(groups, num_blocks, strict=True):
            shape = (count, layout.block_size, layout.num_kv_heads, layout.head_dim)
            for layer in group.layers:
                layers[layer] = (
                    _cache(shape, layout.dtype, device, pinned),
                    _cache(shape, layout.dtype, device, pinned),
                )
    except (MemoryError, torch.OutOfMemoryError) as error:
        blocks = zip(groups, num_blocks, strict=True)
        total = layout.block_bytes * sum(len(group.layers) * count for group, count in blocks)
        raise EngineError(
            f"no memory on {device} for a key/value cache of {max(num_blocks)} blocks"
            f" ({total} bytes)",
            "Give a smaller num_blocks or kv_memory_bytes, or fewer max_num_seqs.",
        ) from error
    return tuple(layers[layer] for layer in sorted(layers))


def _cache(
    shape: tuple[int, ...], dtype: torch.dtype, device: torch.device, pinned: bool
) -> KVCache:
    values = _zeros(shape, dtype, device, pinned)
    if dtype is not torch.int8:
        return values
    return Int8Cache(values, _zeros(shape[:-1], torch.bfloat16, device, pinned))


def free_bytes(device: torch.device) -> int:
    """The share of the memory of `device` that is free now and that a cache may take."""
    if device.type == "cuda":
        return int(_CUDA_SHARE * torch.cuda.mem_get_info(device)[0])
    return int(_CPU_SHARE * psutil.virtual_memory().available)


def _zeros(
    shape: tuple[int, ...], dtype: torch.dtype, device: torch.device, pinned: bool
) -> Tensor:
    """Zeros; on CPU the operating system provides them page by page when first touched."""
    if device.type != "cpu" or pinned:
        return torch.zeros(shape, dtype=dtype, device=device, pin_memory=pinned)
    num_bytes = int(np.prod(shape)) * dtype.itemsize
    memory = np.zeros(num_bytes + _CACHE_LINE_BYTES, dtype=np.uint8)
    start = -memory.ctypes.data % _CACHE_LINE_BYTES
    return torch.from_numpy(memory[start : start + num_bytes]).view(dtype).view(shape)
