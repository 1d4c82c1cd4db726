"""Launch configurations of paged attention: which there are, and those that nothing was measured
for.

Knows nothing of tensors or of Triton. The law: every candidate fits in the shared memory of a
block on sm_90.

BLOCK_N: keys of a step; BLOCK_M: rows of a large tile (small tiles are as large as they must be).
"""

import re
from itertools import product

from llmopt_kernels.paged_attention.launch import SMALL_TILE_ROWS
from llmopt_kernels.tuning import Config, launch_config

_MAX_SHARED_BYTES = 227 * 1024


def shape_class(*, small: bool, head_dim: int, query_bits: int, kv_bits: int) -> str:
    """Launches that share a configuration. head_dim: padded to a power of two."""
    tile = "small" if small else "large"
    return f"{tile}-d{head_dim}-q{query_bits}-kv{kv_bits}"


def tuned_config(shape_class: str) -> Config:
    """For a launch on the current GPU."""
    return launch_config("paged_attention", shape_class, default_config(shape_class))


def default_config(shape_class: str) -> Config:
    """What is used on a GPU for which nothing was tuned."""
    small, head_dim, query_bits, kv_bits = _parse(shape_class)
    if query_bits == 32:  # without tensor cores: registers bound the tiles
        return _config(small, 32, 32 if head_dim <= 128 else 16, 4 if small else 8, 1)
    if small:
        return _config(small, 0, 64 if head_dim <= 128 else 32, 4, 5)  # 2 to look up the blocks
    if head_dim <= 128:
        return _config(small, 128, 64, 8, 3)
    return _config(small, 64, 32 if kv_bits == 16 else 16, 8, 2)  # widening takes registers


def candidates(shape_class: str) -> list[Config]:
    """What a tuner tries."""
    small, head_dim, query_bits, kv_bits = _parse(shape_class)
    found = []
    for block_m, block_n, num_warps, num_stages in product(
        (0,) if small else (32, 64, 128), (16, 32, 64, 128), (4, 8), range(1, 7)
    ):
        stage_bytes = 2 * block_n * head_dim * kv_bits // 8
        tile_bytes = (block_m or SMALL_TILE_ROWS) * head_dim * query_bits // 8
        if stage_bytes * num_stages + tile_bytes <= _MAX_SHARED_BYTES:
            found.append(_config(small, block_m, block_n, num_warps, num_stages))
    return found


def _config(small: bool, block_m: int, block_n: int, num_warps: int, num_stages: int) -> Config:
    config = {"BLOCK_N": block_n, "num_warps": num_warps, "num_stages": num_stages}
    return config if small else config | {"BLOCK_M": block_m}


def _parse(shape_class: str) -> tuple[bool, int, int, int]:
    """Whether tiles are small, the head dim, and the bits of a query's and a key's element."""
    found = re.fullmatch(r"(small|large)-d(\d+)-q(\d+)-kv(\d+)", shape_class)
    assert found is not None, f"not a shape class: {shape_class}"
    return found[1] == "small", int(found[2]), int(found[3]), int(found[4])
