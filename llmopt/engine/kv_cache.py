"""The memory of the key/value cache: how many blocks there are, and the tensors that hold them.

Knows nothing about requests or about who holds which block.
Law: no more blocks than the largest batch can fill, and a block reads as zeros until it is written.
"""

import numpy as np
import psutil
import torch
from torch import Tensor

from llmopt.errors import EngineError
from llmopt.models.config import ModelConfig
from llmopt.models.decoder import KVTensors

_CPU_SHARE = 0.4
_CUDA_SHARE = 0.85
_CACHE_LINE_BYTES = 64


def kv_block_bytes(config: ModelConfig, block_size: int, dtype: torch.dtype) -> int:
    """Bytes of one block: keys and values of `block_size` tokens in every layer."""
    per_token = 2 * config.num_layers * config.num_kv_heads * config.head_dim
    return per_token * block_size * dtype.itemsize


def choose_num_blocks(
    *,
    block_bytes: int,
    block_size: int,
    max_num_seqs: int,
    max_model_len: int,
    num_blocks: int | None,
    kv_memory_bytes: int | None,
    device: torch.device,
) -> int:
    """The number of blocks to allocate.

    `num_blocks` is taken as it is; otherwise `kv_memory_bytes`, or else a share of the memory that
    is free now (0.4 of it on CPU, 0.85 on CUDA, the rest is for activations and others), is filled
    with blocks, but with no more than `max_num_seqs` requests of `max_model_len` tokens can use.

    Raises:
        EngineError: the memory does not hold a single block.
    """
    if num_blocks is not None:
        return num_blocks
    if kv_memory_bytes is None:
        budget = _free_bytes(device)
        source = "the free memory"
    else:
        budget = kv_memory_bytes
        source = "kv_memory_bytes"
    if budget < block_bytes:
        raise EngineError(
            f"{source} leaves {budget} bytes for the key/value cache, and one block of"
            f" {block_size} tokens takes {block_bytes}",
            f"Give kv_memory_bytes of at least {block_bytes}, or a smaller block_size.",
        )
    most_useful = max_num_seqs * -(-max_model_len // block_size)
    return min(budget // block_bytes, most_useful)


def allocate_kv_cache(
    config: ModelConfig, num_blocks: int, block_size: int, dtype: torch.dtype, device: torch.device
) -> KVTensors:
    """Per layer the key and the value cache, each [N, S, KH, D], all zeros.

    Raises:
        EngineError: there is not enough memory.
    """
    shape = (num_blocks, block_size, config.num_kv_heads, config.head_dim)
    try:
        return tuple(
            (_zeros(shape, dtype, device), _zeros(shape, dtype, device))
            for _ in range(config.num_layers)
        )
    except (MemoryError, torch.OutOfMemoryError) as error:
        total = num_blocks * kv_block_bytes(config, block_size, dtype)
        raise EngineError(
            f"no memory on {device} for a key/value cache of {num_blocks} blocks ({total} bytes)",
            "Give a smaller num_blocks or kv_memory_bytes, or fewer max_num_seqs.",
        ) from error


def _free_bytes(device: torch.device) -> int:
    if device.type == "cuda":
        return int(_CUDA_SHARE * torch.cuda.mem_get_info(device)[0])
    return int(_CPU_SHARE * psutil.virtual_memory().available)


def _zeros(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Zeros; on CPU the operating system provides them page by page when first touched."""
    if device.type != "cpu":
        return torch.zeros(shape, dtype=dtype, device=device)
    num_bytes = int(np.prod(shape)) * dtype.itemsize
    memory = np.zeros(num_bytes + _CACHE_LINE_BYTES, dtype=np.uint8)
    start = -memory.ctypes.data % _CACHE_LINE_BYTES
    return torch.from_numpy(memory[start : start + num_bytes]).view(dtype).view(shape)
