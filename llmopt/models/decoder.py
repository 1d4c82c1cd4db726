"""The decoder, as a table of parts: one forward pass for every supported architecture.

Knows nothing of files, requests or scheduling: it computes hidden states for a flat batch of
tokens whose structure is in the AttentionMetadata, with a paged cache or without one. The laws: in
float32 it equals transformers; parts that an architecture lacks are the identity, so no forward
pass asks which architecture it is.
"""

from collections.abc import Callable, Sequence
from functools import cached_property

import torch
import torch.nn.functional as F

from llmopt.layers.linear import Linear
from llmopt.layers.norm import LayerNorm, RMSNorm, add_norm
from llmopt.layers.rotary import Frequencies
from llmopt.models.config import ModelConfig
from llmopt.models.mlp import MLP, MixtureOfExperts, Stage
from llmopt.models.native_forward import NativeForward, make_native_forward
from llmopt_kernels.paged_attention import AttentionMetadata, paged_attention
from llmopt_kernels.rotary import RotaryTables, apply_rotary, rotary_store_kv, rotary_tables
from llmopt_kernels.store_kv import KVCache

LayerKV = tuple[KVCache, KVCache]  # key and value cache, each [N, S, KH, D]
KVTensors = Sequence[LayerKV]
Rotary = tuple[RotaryTables, ...]  # the tables of a batch, one for each of the model's ropes
Norm = Callable[[torch.Tensor], torch.Tensor]
BlockNorm = RMSNorm | LayerNorm  # before a branch


class Attention:
    """Grouped-query self-attention of one layer; q, k and v are one projection."""

    def __init__(
        self, config: ModelConfig, layer: int, qkv: Linear, head_norm: Norm, output: Linear
    ) -> None:
        self.qkv = qkv
        self.head_norm = head_norm  # of query and key heads together
        self.output = output
        self.num_heads = config.num_heads
        self.num_kv_heads = config.num_kv_heads
        self.head_dim = config.head_dim
        self.scale = config.attention_scale
        self.soft_cap = config.attention_soft_cap
        self.rope = config.layers[layer].rope
        self.window = config.layers[layer].window

    def forward(
        self,
        x: torch.Tensor,
        rotary: Rotary,
        metadata: AttentionMetadata,
        layer_kv: LayerKV | None,
    ) -> torch.Tensor:
        """x: [T, C] -> [T, C]; new keys and values are stored in `layer_kv` if there is one."""
        num_rotated = self.num_heads + self.num_kv_heads
        qkv = self.qkv(x).view(len(x), -1, self.head_dim)  # [T, H + 2 * KH, D]
        heads, value = self.head_norm(qkv[:, :num_rotated]), qkv[:, num_rotated:]
        tables = None if self.rope is None else rotary[self.rope]
        if layer_kv is None:
            rotated = heads if tables is None else apply_rotary(heads, tables)
            query = rotated[:, : self.num_heads]
            context: LayerKV = (rotated[:, self.num_heads :], value)
        else:
            assert metadata.slot_mapping is not None, "a cache comes with slots"
            query = rotary_store_kv(
                heads, self.num_heads, value, tables, *layer_kv, metadata.slot_mapping
            )
            context = layer_kv
        attended = paged_attention(
            query, *context, metadata, self.scale, self.window, self.soft_cap
        )
        return self.output(attended.flatten(1))


class DecoderBlock:
    """Attention and MLP, each a branch that is added to the hidden states.

    input_norm and post_norm come before the attention and the MLP; attention_branch_norm and
    mlp_branch_norm come behind them, before the sum. A sum and the norm that reads it are one
    kernel, so a branch is added by whoever normalizes next.
    """

    def __init__(
        self,
        input_norm: BlockNorm,
        attention: Attention,
        attention_branch_norm: Norm,
        post_norm: BlockNorm,
        mlp: MLP | MixtureOfExperts,
        mlp_branch_norm: Norm,
    ) -> None:
        self.input_norm = input_norm
        self.attention = attention
        self.attention_branch_norm = attention_branch_norm
        self.post_norm = post_norm
        self.mlp = mlp
        self.mlp_branch_norm = mlp_branch_norm

    def forward(
        self,
        hidden: torch.Tensor,
        rotary: Rotary,
        metadata: AttentionMetadata,
        layer_kv: LayerKV | None,
    ) -> torch.Tensor:
        """hidden: [T, C] -> [T, C]."""
        return self.feed_forward(self.attend(hidden, rotary, metadata, layer_kv))

    def attend(
        self,
        hidden: torch.Tensor,
        rotary: Rotary,
        metadata: AttentionMetadata,
        layer_kv: LayerKV | None,
    ) -> torch.Tensor:
        """The first half of `forward`: hidden states after the attention was added. [T, C]."""
        hidden, branch = self.attention_branch(hidden, None, rotary, metadata, layer_kv)
        return hidden + branch

    def feed_forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """The second half of `forward`: hidden states after the MLP was added. [T, C]."""
        hidden, branch = self.mlp_branch(hidden, None)
        return hidden + branch

    def attention_branch(
        self,
        hidden: torch.Tensor,
        branch: torch.Tensor | None,
        rotary: Rotary,
        metadata: AttentionMetadata,
        layer_kv: LayerKV | None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """hidden + branch, and the attention of it, which is not added yet. [T, C] each."""
        normed, hidden = add_norm(self.input_norm, hidden, branch)
        attended = self.attention.forward(normed, rotary, metadata, layer_kv)
        return hidden, self.attention_branch_norm(attended)

    def mlp_branch(
        self, hidden: torch.Tensor, branch: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """hidden + branch, and the MLP of it, which is not added yet. [T, C] each."""
        normed, hidden = add_norm(self.post_norm, hidden, branch)
        return hidden, self.mlp_branch_norm(self.mlp.forward(normed))

    @property
    def stages(self) -> tuple[Stage, Stage, Stage, Stage]:
        """The block's linear layers but for a router, in the order in which they run."""
        return (self.attention.qkv,), (self.attention.output,), *self.mlp.stages

    @property
    def linears(self) -> Stage:
        """The block's linear layers."""
        return self.attention.qkv, self.attention.output, *self.mlp.linears

    @property
    def weight_bytes_per_token(self) -> float:
        """Bytes of weights that a step of one token reads."""
        attention = self.attention.qkv.weight_bytes + self.attention.output.weight_bytes
        return attention + self.mlp.weight_bytes_per_token


class Decoder:
    """Embedding, blocks, final norm and output head."""

    def __init__(
        self,
        config: ModelConfig,
        embedding: torch.Tensor,
        blocks: list[DecoderBlock],
        final_norm: BlockNorm,
        lm_head: Linear,
        frequencies: Sequence[Frequencies],
        position_embedding: torch.Tensor | None = None,
    ) -> None:
        self.config = config
        self.embedding = embedding  # [V, C], as stored: the config's embedding_scale is not in it
        self.blocks = blocks
        self.final_norm = final_norm
        self.lm_head = lm_head
        self.frequencies = frequencies  # for each of the config's ropes
        self.position_embedding = position_embedding  # [P, C], where positions are learned
        self.device = embedding.device
        self.dtype = embedding.dtype
        self._has_stacks = False

    def embed(self, input_ids: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        """input_ids, positions: int64 [T] -> [T, C]."""
        rows = scale_embeddings(F.embedding(input_ids, self.embedding), self.config)
        if self.position_embedding is None:
            return rows
        return rows + self.position_embedding[positions]

    def rotary(self, positions: torch.Tensor) -> Rotary:
        """The rotary tables of a batch. positions: [T]."""
        return tuple(
            rotary_tables(positions, inv_freq, self.dtype, scale)
            for inv_freq, scale in self.frequencies
        )

    def forward(
        self,
        input_ids: torch.Tensor,
        positions: torch.Tensor,
        metadata: AttentionMetadata,
        kv_cache: KVTensors | None = None,
    ) -> torch.Tensor:
        """Hidden states after the last block, not normalized. int64 [T], [T] -> [T, C]."""
        if self.native is not None and self.native.takes(kv_cache):
            return self.native.forward(input_ids, positions, metadata, kv_cache)
        hidden, rotary = self.embed(input_ids, positions), self.rotary(positions)
        branch: torch.Tensor | None = None
        for layer, block in enumerate(self.blocks):
            layer_kv = None if kv_cache is None else kv_cache[layer]
            hidden, branch = block.attention_branch(
                hidden, branch, rotary, metadata.of_layer(layer), layer_kv
            )
            hidden, branch = block.mlp_branch(hidden, branch)
        return hidden if branch is None else hidden + branch

    def compute_logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """hidden: [R, C] from `forward` -> logits [R, V] in the activation dtype, or float32 where
        the compiled forward pass computes them: few rows, and those of a coded head.
        """
        if self.native is not None and self.native.takes_rows(len(hidden)):
            return self.native.logits(hidden)
        logits = self.lm_head(self.final_norm(hidden.to(self.dtype)))
        cap = self.config.logit_soft_cap
        return logits if cap is None else (logits / cap).tanh() * cap

    def compute_sampling_logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """As `compute_logits`, but float32 for any number of rows where there is a compiled forward
        pass: which token is chosen does not depend on how many others are.
        """
        return self.compute_logits(hidden) if self.native is None else self.native.logits(hidden)

    def stack_experts(self) -> None:
        """Compute the experts of each mixture together (`MixtureOfExperts.stack`): on a GPU, when
        no layer is changed any more. Once is enough.
        """
        for mixture in () if self._has_stacks else self._mixtures:
            mixture.stack()
        self._has_stacks = True

    @property
    def waits_for_device(self) -> bool:
        """Whether a step needs an answer of the device before it ends, as where experts are
        computed one after the other: such a step cannot be recorded.
        """
        return not all(mixture.is_stacked for mixture in self._mixtures)

    @property
    def _mixtures(self) -> list[MixtureOfExperts]:
        return [block.mlp for block in self.blocks if isinstance(block.mlp, MixtureOfExperts)]

    @cached_property
    def native(self) -> NativeForward | None:
        """The compiled forward pass of these layers, made when it is first asked for."""
        return make_native_forward(self)

    @property
    def weight_bytes(self) -> int:
        """Bytes of all linear layers and the output head: what a decode step reads at most."""
        blocks = sum(linear.weight_bytes for block in self.blocks for linear in block.linears)
        return blocks + self.lm_head.weight_bytes

    @property
    def weight_bytes_per_token(self) -> int:
        """Bytes of weights that a decode step of one token reads: of experts, those that it goes
        to; without experts, what every step reads.
        """
        blocks = sum(block.weight_bytes_per_token for block in self.blocks)
        return round(blocks) + self.lm_head.weight_bytes

    @property
    def kernels(self) -> tuple[str, ...]:
        """The linear kernels in use, each once."""
        linears = [linear for block in self.blocks for linear in block.linears]
        return tuple(dict.fromkeys(linear.kernel for linear in [*linears, self.lm_head]))


def scale_embeddings(rows: torch.Tensor, config: ModelConfig) -> torch.Tensor:
    """Rows [T, C] of the embedding as the first block wants them.

    The scale is rounded to the rows' dtype first, as models that have one were trained.
    """
    if config.embedding_scale is None:
        return rows
    return rows * float(torch.tensor(config.embedding_scale, dtype=rows.dtype))
