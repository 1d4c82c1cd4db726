"""Writing new keys and values into the paged cache."""

import torch


def store_kv(cache: torch.Tensor, new: torch.Tensor, slot_mapping: torch.Tensor) -> None:
    """cache: [N, S, KH, D], written in place; new: [T, KH, D]; slot_mapping: int64 [T]."""
    cache.flatten(0, 1).index_copy_(0, slot_mapping, new)


__all__ = ["store_kv"]
