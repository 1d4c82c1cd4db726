"""Writing new keys and values into the paged cache, and reading them back."""

import torch

from llmopt_kernels.dispatch import uses_triton
from llmopt_kernels.store_kv.cache import Int8Cache, KVCache, cache_tensors, gather_kv
from llmopt_kernels.store_kv.cache import store_rows as store_kv


def store_keys_values(
    key_cache: KVCache,
    value_cache: KVCache,
    key: torch.Tensor,
    value: torch.Tensor,
    slots: torch.Tensor,
) -> None:
    """Write key and value [T, KH, D] into the slots int64 [T] of their caches."""
    if uses_triton(key):
        from llmopt_kernels.store_kv.triton import store_kv_triton

        store_kv_triton(key_cache, value_cache, key, value, slots)
        return
    store_kv(key_cache, key, slots)
    store_kv(value_cache, value, slots)


__all__ = [
    "Int8Cache",
    "KVCache",
    "cache_tensors",
    "gather_kv",
    "store_keys_values",
    "store_kv",
]
