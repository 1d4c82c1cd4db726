"""One description of an attention call, made into tensors for a kernel and for its reference."""

from dataclasses import dataclass, replace
from itertools import accumulate

import interpreter_casts  # noqa: F401  (mends the interpreter)
import torch

from llmopt_kernels.paged_attention import AttentionMetadata
from llmopt_kernels.paged_attention.reference import paged_attention_reference
from llmopt_kernels.store_kv import Int8Cache, KVCache, cache_tensors, store_kv


@dataclass(frozen=True)
class Case:
    """lens: (new tokens, tokens before them) of each request. form: of the cache; None: no cache.
    config: small steps, so that short contexts take several.
    """

    lens: tuple[tuple[int, int], ...] = ((1, 40), (5, 30), (37, 20), (1, 0))
    dtype: torch.dtype = torch.float32
    form: str | None = "plain"
    num_heads: int = 4
    num_kv_heads: int = 2
    head_dim: int = 16
    block_size: int = 8
    max_window: int | None = None
    num_sinks: int = 0
    window: int | None = None
    soft_cap: float | None = None
    num_splits: int | None = None
    block_n: int = 16
    seed: int = 0

    @property
    def config(self) -> dict[str, int]:
        return {"BLOCK_M": 32, "BLOCK_N": self.block_n, "num_warps": 4, "num_stages": 2}

    @property
    def scale(self) -> float:
        return 1.5 * self.head_dim**-0.5


@dataclass(frozen=True)
class Call:
    query: torch.Tensor
    key: KVCache
    value: KVCache
    metadata: AttentionMetadata

    def reference(self, case: Case) -> torch.Tensor:
        """In float64 on the CPU."""
        slots, tables = self.metadata.slot_mapping, self.metadata.block_tables
        metadata = replace(
            self.metadata,
            slot_mapping=None if slots is None else slots.cpu(),
            block_tables=None if tables is None else tables.cpu(),
        )
        key, value = (to_device(cache, torch.device("cpu")) for cache in (self.key, self.value))
        query = self.query.cpu().double()
        return paged_attention_reference(
            query, key, value, metadata, case.scale, case.window, case.soft_cap
        )


def make_call(case: Case, device: torch.device) -> Call:
    """A random call. The query is a view of more heads, as behind the projection."""
    metadata = make_metadata(case, device)
    num_heads = case.num_heads + 2 * case.num_kv_heads
    qkv = randn(metadata.num_tokens, num_heads, case.head_dim, seed=case.seed).to(case.dtype)
    qkv = qkv.to(device)
    if case.form is None:
        key = qkv[:, case.num_heads : case.num_heads + case.num_kv_heads]
        value: KVCache = qkv[:, case.num_heads + case.num_kv_heads :]
        return Call(qkv[:, : case.num_heads], key, value, metadata)
    key, value = (filled_cache(case, metadata, 10 * case.seed + i) for i in (1, 2))
    return Call(qkv[:, : case.num_heads], key, value, metadata)


def make_metadata(case: Case, device: torch.device) -> AttentionMetadata:
    """Every request has blocks of its own in a random order; block 0 is no one's."""
    if case.form is None:
        assert all(before == 0 for _, before in case.lens)
        dense = AttentionMetadata.dense([new for new, _ in case.lens])
        return replace(dense, max_window=case.max_window, num_sinks=case.num_sinks)
    needed = [-(-sum(lens) // case.block_size) for lens in case.lens]
    order = torch.randperm(sum(needed), generator=torch.Generator().manual_seed(case.seed)) + 1
    tables = torch.zeros(len(needed), max(needed), dtype=torch.int32)
    for row, blocks in zip(tables, order.split(needed), strict=True):
        row[: len(blocks)] = blocks
    num_tokens = sum(new for new, _ in case.lens)
    return AttentionMetadata(
        query_lens=tuple(new for new, _ in case.lens),
        seq_lens=tuple(map(sum, case.lens)),
        slot_mapping=torch.zeros(num_tokens, dtype=torch.int64, device=device),
        block_tables=tables.to(device),
        block_size=case.block_size,
        max_window=case.max_window,
        num_sinks=case.num_sinks,
    )


def filled_cache(case: Case, metadata: AttentionMetadata, seed: int) -> KVCache:
    """Random keys or values; slots without a token are NaN, which no one may read."""
    tables = metadata.block_tables
    assert tables is not None
    tables = tables.cpu()
    cache = empty_cache(case, int(tables.max()) + 1)
    slots = [
        table[torch.arange(n) // case.block_size].long() * case.block_size
        + torch.arange(n) % case.block_size
        for table, n in zip(tables, metadata.seq_lens, strict=True)
    ]
    num_tokens = sum(metadata.seq_lens)
    new = randn(num_tokens, case.num_kv_heads, case.head_dim, seed=seed).to(case.dtype)
    store_kv(cache, new, torch.cat(slots))
    return to_device(cache, metadata.block_tables.device)


def empty_cache(case: Case, num_blocks: int) -> KVCache:
    """All NaN; int8 codes have none, but their scales."""
    shape = (num_blocks, case.block_size, case.num_kv_heads, case.head_dim)
    if case.form == "int8":
        scales = torch.full(shape[:-1], torch.nan, dtype=torch.bfloat16)
        return Int8Cache(torch.full(shape, 100, dtype=torch.int8), scales)
    dtype = torch.float8_e4m3fn if case.form == "fp8" else case.dtype
    return torch.full(shape, torch.nan).to(dtype)


def to_device(cache: KVCache, device: torch.device) -> KVCache:
    tensors = [tensor.to(device) for tensor in cache_tensors(cache)]
    return Int8Cache(*tensors) if isinstance(cache, Int8Cache) else tensors[0]


def cu_seqlens(lens: list[int]) -> list[int]:
    return [0, *accumulate(lens)]


def randn(*shape: int, seed: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))
