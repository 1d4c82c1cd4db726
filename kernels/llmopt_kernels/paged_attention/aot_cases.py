"""What of paged attention is compiled ahead of time: launches at shapes of real models.

Knows nothing of the kernels but their arguments. The law: tensors hold no data (torch's "meta").
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch

from llmopt_kernels.aot import AotCase
from llmopt_kernels.aot_arguments import case_of_launch
from llmopt_kernels.paged_attention.arguments import attend_arguments, class_of, merge_arguments
from llmopt_kernels.paged_attention.configs import default_config
from llmopt_kernels.paged_attention.launch import AttentionShape
from llmopt_kernels.paged_attention.metadata import AttentionMetadata, DeviceLengths
from llmopt_kernels.store_kv.cache import Int8Cache, KVCache

_META = torch.device("meta")


@dataclass(frozen=True, slots=True)
class AttentionCall:
    """A call of paged attention on a batch of equal requests. form: of the cache; None: no cache"""

    name: str
    batch: int = 64
    query_len: int = 1
    seq_len: int = 1024
    num_heads: int = 32
    num_kv_heads: int = 8
    head_dim: int = 128
    form: str | None = "bf16"
    window: int | None = None
    num_sinks: int = 0
    soft_cap: float | None = None
    dtype: torch.dtype = torch.bfloat16

    @property
    def query(self) -> torch.Tensor:
        """A view of the projection's result, [T, H, D]."""
        heads = self.num_heads + 2 * self.num_kv_heads
        shape = (self.batch * self.query_len, heads, self.head_dim)
        return torch.empty(shape, dtype=self.dtype, device=_META)[:, : self.num_heads]

    @property
    def cache(self) -> KVCache:
        """Keys or values."""
        if self.form is None:
            shape: tuple[int, ...] = (self.batch * self.query_len, self.num_kv_heads, self.head_dim)
            return torch.empty(shape, dtype=self.dtype, device=_META)
        shape = (4096, 16, self.num_kv_heads, self.head_dim)
        if self.form == "int8":
            scales = torch.empty(shape[:-1], dtype=torch.bfloat16, device=_META)
            return Int8Cache(torch.empty(shape, dtype=torch.int8, device=_META), scales)
        dtype = torch.float8_e4m3fn if self.form == "fp8" else self.dtype
        return torch.empty(shape, dtype=dtype, device=_META)

    @property
    def metadata(self) -> AttentionMetadata:
        """As the kernels read it."""
        integers = torch.empty(self.batch + 1, dtype=torch.int32, device=_META)
        tables = torch.empty(self.batch, -(-self.seq_len // 16), dtype=torch.int32, device=_META)
        return AttentionMetadata(
            query_lens=(self.query_len,) * self.batch,
            seq_lens=(self.seq_len,) * self.batch,
            slot_mapping=None,
            block_tables=None if self.form is None else tables,
            block_size=16,
            num_sinks=self.num_sinks,
            lengths=DeviceLengths(integers, integers[:-1]),
        )


def calls() -> Iterator[AttentionCall]:
    """Decode, verification and prefill of an 8B model with each cache; other models' features."""
    eight_b = AttentionCall("8b")
    for form in ("bf16", "fp8", "int8"):
        call = replace(eight_b, form=form)
        yield replace(call, name=f"8b decode {form}")
        yield replace(call, name=f"8b decode 8k {form}", batch=1, seq_len=8192)
        yield replace(call, name=f"8b verify {form}", query_len=4)
        yield replace(call, name=f"8b prefill {form}", batch=1, query_len=2048, seq_len=8192)
    dense = replace(eight_b, form=None, batch=4, query_len=2048, seq_len=2048)
    yield replace(dense, name="8b without a cache")
    window = replace(eight_b, window=4096, num_sinks=4, seq_len=8192)
    yield replace(window, name="8b window decode")
    yield replace(window, name="8b window prefill", batch=1, query_len=2048)
    gemma = replace(eight_b, num_heads=16, head_dim=256, soft_cap=50.0, window=4096)
    yield replace(gemma, name="d256 cap decode")
    for form in ("bf16", "fp8", "int8"):
        chunk = replace(gemma, batch=1, query_len=2048, seq_len=8192, form=form)
        yield replace(chunk, name=f"d256 cap prefill {form}")
    small = replace(eight_b, num_heads=14, num_kv_heads=2, head_dim=64)
    yield replace(small, name="d64 group 7 decode")
    yield replace(small, name="d64 group 7 prefill", batch=1, query_len=2048, seq_len=2048)
    for head_dim in (80, 96):
        phi = replace(eight_b, num_kv_heads=32, head_dim=head_dim)
        yield replace(phi, name=f"d{head_dim} decode")
        yield replace(phi, name=f"d{head_dim} prefill", batch=1, query_len=2048, seq_len=2048)
    exact = replace(eight_b, dtype=torch.float32)
    yield replace(exact, name="float32 decode")
    yield replace(exact, name="float32 prefill", batch=1, query_len=2048, seq_len=2048)


def cases_of(call: AttentionCall, attend: Any, merge: Any) -> Iterator[AotCase]:
    """The launches of a call, whose batch is one part, of the two kernels."""
    query, cache, metadata = call.query, call.cache, call.metadata
    configs = {
        small: default_config(class_of(query, cache, small=small)) for small in (True, False)
    }
    shape = AttentionShape(
        num_kv_heads=call.num_kv_heads,
        group=call.num_heads // call.num_kv_heads,
        window=call.window,
        large_tile_rows=configs[False]["BLOCK_M"],
        num_sms=132,
    )
    (launch,) = metadata.launches(shape)
    config = configs[launch.one_tile]
    out = torch.empty(query.shape, dtype=query.dtype, device=query.device)
    arguments = attend_arguments(
        query,
        cache,
        cache,
        out,
        metadata,
        launch,
        scale=call.head_dim**-0.5,
        window=call.window,
        soft_cap=call.soft_cap,
        config=config,
    )
    yield case_of_launch(
        f"paged_attention {call.name}",
        attend,
        arguments,
        num_warps=config["num_warps"],
        num_stages=config["num_stages"],
        needs_wgmma=not launch.one_tile and call.dtype.itemsize == 2,
    )
    if launch.num_splits > 1:
        merging = merge_arguments(arguments, out, launch)
        yield case_of_launch(f"paged_attention {call.name} merge", merge, merging)
