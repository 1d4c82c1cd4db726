"""How keys and values lie in the paged cache: as computed, as FP8, or as int8 with scales.

A cache is a tensor [N, S, KH, D], or an `Int8Cache` of that shape. Slot = block_id * S + offset.

* The model's dtype: exact.
* float8_e4m3fn (OCP 8-bit floating point specification, 2023): values beyond ±448 become ±448; no
  scales, because the format's own exponents cover what heads hold.
* int8: symmetric, with one bfloat16 scale for each token and head: scale = max|x| / 127,
  code = round(x / scale).
"""

from dataclasses import dataclass

import torch

_FP8_MAX = torch.finfo(torch.float8_e4m3fn).max


@dataclass(frozen=True, slots=True)
class Int8Cache:
    """codes: int8 [N, S, KH, D]; scales: bfloat16 [N, S, KH]."""

    codes: torch.Tensor
    scales: torch.Tensor

    @property
    def tensors(self) -> tuple[torch.Tensor, ...]:
        """All of it."""
        return self.codes, self.scales


KVCache = torch.Tensor | Int8Cache


def cache_tensors(cache: KVCache) -> tuple[torch.Tensor, ...]:
    """The tensors [N, ...] that a cache consists of."""
    return cache.tensors if isinstance(cache, Int8Cache) else (cache,)


def quantize_int8(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """x [T, KH, D] as codes int8 [T, KH, D] and scales bfloat16 [T, KH]."""
    wide = x.float()
    smallest = torch.finfo(torch.bfloat16).tiny
    scales = (wide.abs().amax(dim=-1) / 127).clamp_(min=smallest).to(torch.bfloat16)
    codes = (wide / scales.float().unsqueeze(-1)).round_().clamp_(-127, 127)
    return codes.to(torch.int8), scales


def gather_kv(cache: KVCache, slots: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """The keys or values in these slots (int64 [n]) -> [n, KH, D] in `dtype`."""
    if isinstance(cache, Int8Cache):
        codes = cache.codes.flatten(0, 1).index_select(0, slots)
        scales = cache.scales.flatten(0, 1).index_select(0, slots)
        return codes.to(dtype).mul_(scales.to(dtype).unsqueeze(-1))
    rows = cache.flatten(0, 1)
    if cache.dtype is torch.float8_e4m3fn:
        codes = rows.view(torch.uint8).index_select(0, slots)
        return codes.view(torch.float8_e4m3fn).to(dtype)
    return rows.index_select(0, slots)


def store_rows(cache: KVCache, new: torch.Tensor, slots: torch.Tensor) -> None:
    """Write new [T, KH, D] into the slots int64 [T] of a cache, in the cache's form."""
    if isinstance(cache, Int8Cache):
        codes, scales = quantize_int8(new)
        cache.codes.flatten(0, 1).index_copy_(0, slots, codes)
        cache.scales.flatten(0, 1).index_copy_(0, slots, scales)
    elif cache.dtype is torch.float8_e4m3fn:
        codes = new.float().clamp(-_FP8_MAX, _FP8_MAX).to(cache.dtype).view(torch.uint8)
        cache.flatten(0, 1).view(torch.uint8).index_copy_(0, slots, codes)
    else:
        cache.flatten(0, 1).index_copy_(0, slots, new)
