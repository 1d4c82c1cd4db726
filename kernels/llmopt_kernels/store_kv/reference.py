"""Writing new keys and values into the paged cache, token by token: slot = block_id * S + offset.

The definition of the three forms is in `cache.py`.
"""

import torch

from llmopt_kernels.store_kv.cache import Int8Cache, KVCache

_FP8_MAX = 448.0


def store_kv_reference(cache: KVCache, new: torch.Tensor, slot_mapping: torch.Tensor) -> None:
    """cache: [N, S, KH, D], written in place; new: [T, KH, D]; slot_mapping: int64 [T]."""
    rows = cache.codes if isinstance(cache, Int8Cache) else cache
    block_size = rows.shape[1]
    for token, slot in enumerate(slot_mapping.tolist()):
        place = slot // block_size, slot % block_size
        if isinstance(cache, Int8Cache):
            for head, x in enumerate(new[token].float()):
                scale = max(x.abs().max() / 127, torch.finfo(torch.bfloat16).tiny)
                cache.scales[place][head] = scale
                codes = x / cache.scales[place][head].float()
                cache.codes[place][head] = codes.round().clamp(-127, 127).to(torch.int8)
        else:
            limit = _FP8_MAX if cache.dtype is torch.float8_e4m3fn else float("inf")
            cache[place] = new[token].clamp(-limit, limit).to(cache.dtype)


def store_keys_values_reference(
    key_cache: KVCache,
    value_cache: KVCache,
    key: torch.Tensor,
    value: torch.Tensor,
    slots: torch.Tensor,
) -> None:
    """Both of a layer: key, value [T, KH, D] into slots int64 [T] of their caches."""
    store_kv_reference(key_cache, key, slots)
    store_kv_reference(value_cache, value, slots)


def read_kv_reference(cache: KVCache) -> torch.Tensor:
    """The whole cache [N, S, KH, D] as float64."""
    if isinstance(cache, Int8Cache):
        return cache.codes.double() * cache.scales.double().unsqueeze(-1)
    return cache.double()
