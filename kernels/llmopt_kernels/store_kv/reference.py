"""Writing new keys and values into the paged cache: slot = block_id * S + offset."""

import torch


def store_kv_reference(cache: torch.Tensor, new: torch.Tensor, slot_mapping: torch.Tensor) -> None:
    """cache: [N, S, KH, D], written in place; new: [T, KH, D]; slot_mapping: int64 [T]."""
    block_size = cache.shape[1]
    for token, slot in enumerate(slot_mapping.tolist()):
        cache[slot // block_size, slot % block_size] = new[token]
