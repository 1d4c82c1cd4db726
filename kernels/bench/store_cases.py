"""New keys and values on their way into the cache: the store alone, and behind rotary embedding.

Knows nothing of timing. The law: torch does what the kernel fuses, operation by operation, as a
model without the kernel would; without Triton, that is also what ours does.
"""

from collections.abc import Iterator
from functools import cache, partial
from typing import Any

import torch

from bench.case import OURS, Case, Contender, randn
from bench.closeness import closeness_problem
from bench.row_cases import TORCH, TORCH_MAGNITUDE
from bench.shapes import Shapes
from llmopt_kernels.dispatch import uses_triton
from llmopt_kernels.rotary import rotary_store_kv, rotary_tables
from llmopt_kernels.rotary.reference import rotary_store_kv_reference
from llmopt_kernels.store_kv import store_keys_values

_BLOCK_SIZE = 16


def store_cases(device: torch.device, shapes: Shapes) -> Iterator[Case]:
    """New keys and values into the cache, alone."""
    for num_tokens in (*shapes.tokens, *shapes.prompts):
        yield _StoreCase(device, shapes, num_tokens).stored()


def rotary_cases(device: torch.device, shapes: Shapes) -> Iterator[Case]:
    """Queries and keys rotated, and keys and values stored, in one launch."""
    for num_tokens in (*shapes.tokens, *shapes.prompts):
        yield _StoreCase(device, shapes, num_tokens).rotated()


class _StoreCase:
    """Projected heads of some tokens, and two caches that they are stored in."""

    def __init__(self, device: torch.device, shapes: Shapes, num_tokens: int) -> None:
        self.num_heads, self.kv_heads = shapes.num_heads, shapes.num_kv_heads
        heads, head_dim = self.num_heads + 2 * self.kv_heads, shapes.head_dim
        qkv = randn(device, num_tokens, heads, head_dim).bfloat16()
        self.rotated_heads, self.value = qkv[:, : -self.kv_heads], qkv[:, -self.kv_heads :]
        num_blocks = -(-num_tokens // _BLOCK_SIZE) + 1
        cache_shape = (num_blocks, _BLOCK_SIZE, self.kv_heads, head_dim)
        self.caches = [torch.zeros(cache_shape, device=device).bfloat16() for _ in range(2)]
        order = torch.randperm(num_tokens, generator=torch.Generator().manual_seed(0))
        self.slots = (order + _BLOCK_SIZE).to(device)
        halves = torch.arange(0, head_dim, 2, device=device) / head_dim
        positions = torch.arange(num_tokens, device=device)
        self.tables = rotary_tables(positions, 500_000.0**-halves, torch.bfloat16)
        self.shape = f"h{self.num_heads}/{self.kv_heads} d{head_dim}"
        self.kv_bytes = 4 * self.value.numel() * self.value.element_size()

    def stored(self) -> Case:
        """The store alone."""
        key = self.rotated_heads[:, self.num_heads :]

        def by_torch() -> None:
            for rows, new in zip(self.caches, (key, self.value), strict=True):
                rows.flatten(0, 1).index_copy_(0, self.slots, new)

        def check(_: Any) -> str | None:
            found = [rows.flatten(0, 1)[self.slots] for rows in self.caches]
            right = torch.equal(found[0], key) and torch.equal(found[1], self.value)
            for rows in self.caches:
                rows.zero_()  # the next one stores anew
            return None if right else "the cache does not hold what was stored"

        ours = partial(
            store_keys_values, self.caches[0], self.caches[1], key, self.value, self.slots
        )
        contenders = Contender(OURS, ours, self.kv_bytes), Contender(TORCH, by_torch, self.kv_bytes)
        return Case("store_kv", f"bf16 {self.shape}", len(key), contenders, check)

    def rotated(self) -> Case:
        """With rotary embedding in front."""
        heads = self.rotated_heads
        cos, sin = self.tables

        def by_torch() -> torch.Tensor:
            first, second = heads.chunk(2, dim=-1)
            rotated = heads * cos + torch.cat([second, first], dim=-1) * sin
            for rows, new in zip(
                self.caches, (rotated[:, self.num_heads :], self.value), strict=True
            ):
                rows.flatten(0, 1).index_copy_(0, self.slots, new)
            return rotated[:, : self.num_heads]

        @cache
        def expected() -> tuple[torch.Tensor, torch.Tensor]:
            keys, values = (torch.zeros_like(rows, dtype=torch.float64) for rows in self.caches)
            query = rotary_store_kv_reference(
                heads.double(), self.num_heads, self.value, self.tables, keys, values, self.slots
            )
            return query, keys

        def check(out: Any, magnitude: float = 1.0) -> str | None:
            problems = [
                closeness_problem(found, exact, num_terms=2, magnitude=magnitude)
                for found, exact in zip((out, self.caches[0]), expected(), strict=True)
            ]
            for rows in self.caches:
                rows.zero_()
            return problems[0] or problems[1]

        table_bytes = cos.nbytes + sin.nbytes
        num_bytes = 2 * heads.nbytes + self.kv_bytes // 2 + table_bytes
        ours = partial(
            rotary_store_kv,
            heads,
            self.num_heads,
            self.value,
            self.tables,
            self.caches[0],
            self.caches[1],
            self.slots,
        )
        by_operations = partial(check, magnitude=TORCH_MAGNITUDE)
        contenders = (
            Contender(OURS, ours, num_bytes),
            Contender(TORCH, by_torch, num_bytes, check=by_operations),
        )
        held = check if uses_triton(heads) else by_operations
        return Case("rotary_store_kv", self.shape, len(heads), contenders, held)
