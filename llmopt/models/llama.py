"""The Llama decoder, as a table of parts.

Knows nothing of files, requests or scheduling: it computes hidden states for a flat batch of
tokens whose structure is in the AttentionMetadata, with a paged cache or without one. The law: in
float32 it equals transformers.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F

from llmopt.layers.linear import Linear
from llmopt.layers.norm import RMSNorm
from llmopt.models.config import ModelConfig
from llmopt_kernels.paged_attention import AttentionMetadata, paged_attention
from llmopt_kernels.rotary import RotaryTables, apply_rotary, rotary_tables
from llmopt_kernels.silu_mul import silu_mul
from llmopt_kernels.store_kv import store_kv

LayerKV = tuple[torch.Tensor, torch.Tensor]  # key and value cache, each [N, S, KH, D]
KVTensors = Sequence[LayerKV]


class Attention:
    """Grouped-query self-attention; q, k and v are one projection."""

    def __init__(self, config: ModelConfig, qkv: Linear, output: Linear) -> None:
        self.qkv = qkv
        self.output = output
        self.num_heads = config.num_heads
        self.num_kv_heads = config.num_kv_heads
        self.head_dim = config.head_dim
        self.scale = config.head_dim**-0.5

    def forward(
        self,
        x: torch.Tensor,
        rotary: RotaryTables,
        metadata: AttentionMetadata,
        layer_kv: LayerKV | None,
    ) -> torch.Tensor:
        """x: [T, C] -> [T, C]; new keys and values are stored in `layer_kv` if there is one."""
        num_rotated = self.num_heads + self.num_kv_heads
        qkv = self.qkv(x).view(len(x), -1, self.head_dim)  # [T, H + 2 * KH, D]
        rotated = apply_rotary(qkv[:, :num_rotated], rotary)
        query, key = rotated[:, : self.num_heads], rotated[:, self.num_heads :]
        value = qkv[:, num_rotated:]
        if layer_kv is not None:
            assert metadata.slot_mapping is not None, "a cache comes with slots"
            store_kv(layer_kv[0], key, metadata.slot_mapping)
            store_kv(layer_kv[1], value, metadata.slot_mapping)
            key, value = layer_kv
        attended = paged_attention(query, key, value, metadata, self.scale)
        return self.output(attended.flatten(1))


class GatedMLP:
    """down(silu(gate(x)) * up(x)); gate and up are one projection."""

    def __init__(self, gate_up: Linear, down: Linear) -> None:
        self.gate_up = gate_up
        self.down = down

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x: [T, C] -> [T, C]."""
        return self.down(silu_mul(self.gate_up(x)))


class DecoderBlock:
    """Pre-norm attention and MLP with residuals."""

    def __init__(
        self, input_norm: RMSNorm, attention: Attention, post_norm: RMSNorm, mlp: GatedMLP
    ) -> None:
        self.input_norm = input_norm
        self.attention = attention
        self.post_norm = post_norm
        self.mlp = mlp

    def forward(
        self,
        hidden: torch.Tensor,
        rotary: RotaryTables,
        metadata: AttentionMetadata,
        layer_kv: LayerKV | None,
    ) -> torch.Tensor:
        """hidden: [T, C] -> [T, C]."""
        attended = self.attention.forward(self.input_norm(hidden), rotary, metadata, layer_kv)
        hidden = hidden + attended
        return hidden + self.mlp.forward(self.post_norm(hidden))

    @property
    def linears(self) -> tuple[Linear, Linear, Linear, Linear]:
        """The block's linear layers, in the order in which they run."""
        return self.attention.qkv, self.attention.output, self.mlp.gate_up, self.mlp.down


class LlamaModel:
    """Embedding, blocks, final norm and output head."""

    def __init__(
        self,
        config: ModelConfig,
        embedding: torch.Tensor,
        blocks: list[DecoderBlock],
        final_norm: RMSNorm,
        lm_head: Linear,
        inv_freq: torch.Tensor,
    ) -> None:
        self.config = config
        self.embedding = embedding  # [V, C]
        self.blocks = blocks
        self.final_norm = final_norm
        self.lm_head = lm_head
        self.inv_freq = inv_freq
        self.device = embedding.device
        self.dtype = embedding.dtype

    def embed(self, input_ids: torch.Tensor) -> torch.Tensor:
        """input_ids: int64 [T] -> [T, C]."""
        return F.embedding(input_ids, self.embedding)

    def rotary(self, positions: torch.Tensor) -> RotaryTables:
        """The rotary tables of a batch. positions: [T]."""
        return rotary_tables(positions, self.inv_freq, self.dtype)

    def forward(
        self,
        input_ids: torch.Tensor,
        positions: torch.Tensor,
        metadata: AttentionMetadata,
        kv_cache: KVTensors | None = None,
    ) -> torch.Tensor:
        """Hidden states after the last block, not normalized. int64 [T], [T] -> [T, C]."""
        hidden = self.embed(input_ids)
        rotary = self.rotary(positions)
        for layer, block in enumerate(self.blocks):
            layer_kv = None if kv_cache is None else kv_cache[layer]
            hidden = block.forward(hidden, rotary, metadata, layer_kv)
        return hidden

    def compute_logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """hidden: [R, C] from `forward` -> logits [R, V] in the activation dtype."""
        return self.lm_head(self.final_norm(hidden))

    @property
    def weight_bytes(self) -> int:
        """Bytes of weights that one decode step reads: all linear layers and the output head."""
        blocks = sum(linear.weight_bytes for block in self.blocks for linear in block.linears)
        return blocks + self.lm_head.weight_bytes

    @property
    def kernels(self) -> tuple[str, ...]:
        """The linear kernels in use, each once."""
        linears = [linear for block in self.blocks for linear in block.linears]
        return tuple(dict.fromkeys(linear.kernel for linear in [*linears, self.lm_head]))
