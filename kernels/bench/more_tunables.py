"""What there is to tune beside matrix products: attention, the KV store, rotary, sampling, experts,
and what works row by row (`bench.row_tunables`).

Knows nothing of searching. The law of `bench.tunables`.
"""

from collections.abc import Iterator
from functools import partial

import torch

from bench.attention_cases import Batch, filled_cache, request_metadata
from bench.case import randn
from bench.moe_cases import dense_stack, packed_stack
from bench.row_tunables import gated_tunables, norm_tunables
from bench.shapes import Shapes
from bench.tunables import Tunable
from llmopt.layers.sampler import SamplingRow, row_params
from llmopt_kernels.matmul import configs
from llmopt_kernels.moe import route
from llmopt_kernels.moe import triton as moe
from llmopt_kernels.moe.blocks import expert_blocks
from llmopt_kernels.paged_attention import AttentionMetadata
from llmopt_kernels.paged_attention import configs as attention_configs
from llmopt_kernels.paged_attention.triton import paged_attention_triton
from llmopt_kernels.rotary import rotary_tables
from llmopt_kernels.rotary.triton import rotary_store_kv_triton
from llmopt_kernels.sampling import triton as sampling
from llmopt_kernels.store_kv import KVCache
from llmopt_kernels.store_kv.triton import DEFAULT_CONFIG as STORE_DEFAULT
from llmopt_kernels.store_kv.triton import candidates as store_candidates
from llmopt_kernels.store_kv.triton import shape_class as store_class
from llmopt_kernels.store_kv.triton import store_kv_triton
from llmopt_kernels.tuning import Config

_BITS = {"bf16": 16, "fp8": 8, "int8": 8}


def other_tunables(kernel: str, device: torch.device, shapes: Shapes) -> Iterator[Tunable]:
    """The classes of a kernel that is no matrix product of linear layers."""
    if kernel == "paged_attention":
        yield from _attention(device, shapes)
    if kernel == "store_kv":
        yield _store(device, shapes)
    if kernel == "rotary_store_kv":
        yield _rotary(device, shapes)
    if kernel == "rms_norm":
        yield from norm_tunables(device, shapes)
    if kernel == "gated_activation":
        yield from gated_tunables(device, shapes)
    if kernel == "sampling":
        yield _sampling(device, shapes)
    if kernel == "moe":
        yield from _experts(device, shapes)


def _attention(device: torch.device, shapes: Shapes) -> Iterator[Tunable]:
    """Decodes of the largest batch, and one prompt; with bf16 and with 8-bit caches."""
    for form in ("bf16", "fp8"):
        for batch in (
            Batch(max(shapes.batches), 1, shapes.contexts[0]),
            Batch(1, *2 * shapes.prompts[:1]),
        ):
            query = randn(
                device, batch.batch * batch.query_len, shapes.num_heads, shapes.head_dim
            ).bfloat16()
            metadata = request_metadata(device, batch)
            num_tokens = batch.batch * batch.seq_len
            new = randn(device, num_tokens, shapes.num_kv_heads, shapes.head_dim).bfloat16()
            filled = filled_cache(new, metadata, batch, form)
            name = attention_configs.shape_class(
                small=batch.query_len == 1,
                head_dim=shapes.head_dim,
                query_bits=16,
                kv_bits=_BITS[form],
            )
            yield Tunable(
                "paged_attention",
                name,
                attention_configs.default_config(name),
                attention_configs.candidates(name),
                partial(_attend, query, filled, metadata),
            )


def _attend(
    query: torch.Tensor, filled: KVCache, metadata: AttentionMetadata, config: Config
) -> torch.Tensor:
    scale = query.shape[-1] ** -0.5
    return paged_attention_triton(query, filled, filled, metadata, scale, config=config)


def _store(device: torch.device, shapes: Shapes) -> Tunable:
    num_rows = max(shapes.batches)
    new = randn(device, num_rows, shapes.num_kv_heads, shapes.head_dim).bfloat16()
    rows = torch.zeros(num_rows, 1, *new.shape[1:], dtype=new.dtype, device=device)
    slots = torch.arange(num_rows, device=device)
    name = store_class(1 << (shapes.head_dim - 1).bit_length())

    def launch(config: Config) -> None:
        store_kv_triton(rows, rows, new, new, slots, config=config)

    return Tunable("store_kv", name, STORE_DEFAULT, store_candidates(name), launch)


def _rotary(device: torch.device, shapes: Shapes) -> Tunable:
    num_rows, kv_heads = max(shapes.batches), shapes.num_kv_heads
    qkv = randn(device, num_rows, shapes.num_heads + 2 * kv_heads, shapes.head_dim).bfloat16()
    cache = torch.zeros(num_rows, 1, kv_heads, shapes.head_dim, dtype=qkv.dtype, device=device)
    slots = torch.arange(num_rows, device=device)
    tables = rotary_tables(slots, torch.ones(shapes.head_dim // 2, device=device), torch.bfloat16)
    name = store_class(1 << (shapes.head_dim - 1).bit_length())

    def launch(config: Config) -> torch.Tensor:
        heads, value = qkv[:, :-kv_heads], qkv[:, -kv_heads:]
        return rotary_store_kv_triton(
            heads, shapes.num_heads, value, tables, cache, cache, slots, config=config
        )

    return Tunable("rotary_store_kv", name, STORE_DEFAULT, store_candidates(name), launch)


def _sampling(device: torch.device, shapes: Shapes) -> Tunable:
    num_rows = max(shapes.batches)
    logits = (4 * randn(device, num_rows, shapes.vocab_size)).bfloat16()
    rows = [SamplingRow(0.8, 50, 0.9, seed=seed, position=0) for seed in range(num_rows)]
    params = row_params(rows, pinned=False).to(device)
    return Tunable(
        "sampling",
        sampling.shape_class(shapes.vocab_size),
        sampling.DEFAULT,
        sampling.candidates(),
        partial(sampling.sample_triton, logits, params),
    )


def _experts(device: torch.device, shapes: Shapes) -> Iterator[Tunable]:
    """gate and up, for batches that give each expert 1, 64 and 256 tokens on average."""
    rows, columns = 2 * shapes.expert_inner, shapes.expert_hidden
    for make in (dense_stack, packed_stack):
        stack, _ = make(device, shapes.num_experts, rows, columns)
        for each in (1, 64, 256):
            num_tokens = each * shapes.num_experts // shapes.num_chosen
            x = randn(device, num_tokens, columns).bfloat16()
            logits = randn(device, num_tokens, shapes.num_experts, seed=3)
            weights, chosen = route(logits, shapes.num_chosen, normalize=True)
            bits = 16 if make is dense_stack else 4
            launch = partial(_multiply_experts, x, weights, chosen, stack, shapes.num_experts)
            name = str(configs.ShapeClass.of(bits, each, rows, columns))
            default = moe.expert_config(chosen.numel(), shapes.num_experts, stack)
            yield Tunable("moe", name, default, moe.candidates(name), launch)


def _multiply_experts(
    x: torch.Tensor,
    weights: torch.Tensor,
    chosen: torch.Tensor,
    stack: moe.ExpertStack,
    num_experts: int,
    config: Config,
) -> torch.Tensor:
    """The size of the blocks of pairs is a part of the configuration."""
    blocks = expert_blocks(chosen, weights, num_experts, config["BLOCK_T"])
    return moe.expert_matmul_triton(x, blocks, stack, config, gather=True)
