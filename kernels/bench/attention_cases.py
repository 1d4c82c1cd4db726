"""Paged attention: decoding and prompts over caches of each form, beside torch's dense attention.

Knows nothing of timing. The law: torch's attention, which knows no blocks, gets the same keys and
values side by side (FlashAttention's kernel where it is a GPU), and what it does not need to read
is not counted for it.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache, partial

import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from bench.case import OURS, Case, Contender, randn
from bench.closeness import Check, closeness_problem, norm_problem
from bench.shapes import Shapes
from llmopt_kernels.paged_attention import AttentionMetadata, paged_attention
from llmopt_kernels.paged_attention.reference import paged_attention_reference
from llmopt_kernels.store_kv import Int8Cache, KVCache, cache_tensors, store_kv

KERNEL = "paged_attention"
_BLOCK_SIZE = 16
_FORMS = ("bf16", "fp8", "int8")
_LARGEST_VALUE = 4.0  # or nearly so, of normal numbers: a term where a token sees few
_MAX_TOKENS = 64 * 8192  # of all requests of a case


@dataclass(frozen=True, slots=True)
class Batch:
    """Equal requests: new tokens of each, and tokens that it has in all."""

    batch: int
    query_len: int
    seq_len: int

    @property
    def num_pairs(self) -> int:
        """A query and a key that it sees, over all requests."""
        before = self.seq_len - self.query_len
        return self.batch * (self.query_len * before + self.query_len * (self.query_len + 1) // 2)


def attention_cases(device: torch.device, shapes: Shapes) -> Iterator[Case]:
    """Decodes of each batch and context, whole prompts, and the last chunk of the longest one."""
    batches = [
        Batch(size, 1, context)
        for context in shapes.contexts
        for size in shapes.batches
        if size * context <= _MAX_TOKENS
    ]
    batches += [Batch(1, length, length) for length in shapes.prompts]
    if len(shapes.prompts) > 1:
        batches.append(Batch(1, shapes.prompts[0], shapes.prompts[-1]))
    for batch in batches:
        for form in _FORMS:
            yield _case(device, shapes, batch, form)


def _case(device: torch.device, shapes: Shapes, batch: Batch, form: str) -> Case:
    heads, kv_heads, head_dim = shapes.num_heads, shapes.num_kv_heads, shapes.head_dim
    num_new = batch.batch * batch.query_len
    query = randn(device, num_new, heads, head_dim).bfloat16()
    metadata = request_metadata(device, batch)
    rows = [
        randn(device, batch.batch * batch.seq_len, kv_heads, head_dim, seed=seed).bfloat16()
        for seed in (1, 2)
    ]
    key, value = (filled_cache(new, metadata, batch, form) for new in rows)
    scale = head_dim**-0.5
    read = sum(tensor.nbytes for cache_ in (key, value) for tensor in cache_tensors(cache_))
    check, others = _checks(query, key, value, metadata, scale)
    contenders = [
        Contender(
            OURS,
            partial(paged_attention, query, key, value, metadata, scale),
            2 * query.nbytes + read,
        )
    ]
    if form == "bf16" and batch.query_len in (1, batch.seq_len):
        traffic = 2 * query.nbytes + sum(new.nbytes for new in rows)
        contenders.append(
            Contender("torch sdpa", _Dense(query, rows, batch), traffic, check=others)
        )
    kind = "decode" if batch.query_len == 1 else f"prompt of {batch.query_len}"
    return Case(
        kernel=KERNEL,
        shape=f"{kind} {form} context {batch.seq_len} h{heads}/{kv_heads} d{head_dim}",
        num_tokens=num_new,
        contenders=tuple(contenders),
        check=check,
        num_flops=4.0 * heads * head_dim * batch.num_pairs,
    )


def request_metadata(device: torch.device, batch: Batch) -> AttentionMetadata:
    """Blocks of requests in a random order, as they come to lie in a pool."""
    per_request = -(-batch.seq_len // _BLOCK_SIZE)
    order = torch.randperm(
        batch.batch * per_request, generator=torch.Generator().manual_seed(0), dtype=torch.int32
    )
    tables = order.view(batch.batch, per_request)
    positions = torch.arange(batch.seq_len - batch.query_len, batch.seq_len)
    slots = tables[:, positions // _BLOCK_SIZE].long() * _BLOCK_SIZE + positions % _BLOCK_SIZE
    return AttentionMetadata(
        query_lens=(batch.query_len,) * batch.batch,
        seq_lens=(batch.seq_len,) * batch.batch,
        slot_mapping=slots.flatten().to(device),
        block_tables=tables.to(device),
        block_size=_BLOCK_SIZE,
    )


def filled_cache(
    new: torch.Tensor, metadata: AttentionMetadata, batch: Batch, form: str
) -> KVCache:
    """A cache with the keys or values new [B * L, KH, D] of whole requests."""
    tables = metadata.block_tables
    assert tables is not None, "there is a cache"
    shape = (tables.numel(), _BLOCK_SIZE, *new.shape[1:])
    positions = torch.arange(batch.seq_len, device=new.device)
    slots = tables[:, positions // _BLOCK_SIZE].long() * _BLOCK_SIZE + positions % _BLOCK_SIZE
    if form == "int8":
        scales = torch.zeros(shape[:-1], dtype=torch.bfloat16, device=new.device)
        filled: KVCache = Int8Cache(torch.zeros(shape, dtype=torch.int8, device=new.device), scales)
    else:
        dtype = torch.float8_e4m3fn if form == "fp8" else new.dtype
        filled = torch.zeros(shape, device=new.device).to(dtype)
    store_kv(filled, new, slots.flatten())
    return filled


class _Dense:
    """torch's attention over keys and values side by side."""

    def __init__(self, query: torch.Tensor, rows: list[torch.Tensor], batch: Batch) -> None:
        def by_head(x: torch.Tensor) -> torch.Tensor:
            return x.view(batch.batch, -1, *x.shape[1:]).transpose(1, 2).contiguous()

        self._query = by_head(query)
        self._key, self._value = map(by_head, rows)
        self._causal = batch.query_len > 1
        flash = [SDPBackend.FLASH_ATTENTION]
        self._backends = flash if query.is_cuda else [*flash, SDPBackend.MATH]

    def __call__(self) -> torch.Tensor:
        with sdpa_kernel(self._backends):
            out = F.scaled_dot_product_attention(
                self._query, self._key, self._value, is_causal=self._causal, enable_gqa=True
            )
        return out.transpose(1, 2).flatten(0, 1)  # [T, H, D]


def _checks(
    query: torch.Tensor,
    key: KVCache,
    value: KVCache,
    metadata: AttentionMetadata,
    scale: float,
) -> tuple[Check, Check]:
    """Of ours, and of others."""
    expected = cache(lambda: paged_attention_reference(query.double(), key, value, metadata, scale))
    return (
        lambda out: closeness_problem(out, expected(), magnitude=_LARGEST_VALUE),
        lambda out: norm_problem(out, expected()),
    )
