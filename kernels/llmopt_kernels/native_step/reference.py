"""The forward pass as a composition of the kernels' references, in float32.

Rounded to bfloat16, as in step.h: queries, keys and values, and the inputs of products with
bfloat16 matrices. Only such products are here; for coded weights see `wna8`.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F

from llmopt_kernels.native_step.parts import DecoderParts, LayerParts, NormPart, Projection
from llmopt_kernels.paged_attention import AttentionMetadata
from llmopt_kernels.paged_attention.reference import paged_attention_reference
from llmopt_kernels.rotary.reference import rotary_reference
from llmopt_kernels.store_kv.reference import store_kv_reference

LayerKV = tuple[torch.Tensor, torch.Tensor]


def forward_reference(
    parts: DecoderParts,
    token_ids: torch.Tensor,
    positions: torch.Tensor,
    metadata: AttentionMetadata,
    caches: Sequence[LayerKV] | None,
) -> torch.Tensor:
    """Same arguments and result as `NativeStep.forward`."""
    hidden = parts.embedding[token_ids].float() * parts.embedding_scale
    if parts.positions is not None:
        hidden = hidden + parts.positions[positions].float()
    for index, layer in enumerate(parts.layers):
        of_layer = metadata.of_layer(index)
        cache = None if caches is None else caches[index]
        branch = _attention(parts, layer, hidden, positions, of_layer, cache)
        hidden = hidden + _norm(layer.attention_branch_norm, branch)
        inner = _project(layer.gate_up, _norm(layer.post_norm, hidden))
        branch = _project(layer.down, _activate(inner, parts.activation, parts.gated))
        hidden = hidden + _norm(layer.mlp_branch_norm, branch)
    return hidden


def logits_reference(parts: DecoderParts, hidden: torch.Tensor) -> torch.Tensor:
    """Same arguments and result as `NativeStep.logits`."""
    logits = _project(parts.lm_head, _norm(parts.final_norm, hidden))
    cap = parts.logit_soft_cap
    return logits if cap is None else (logits / cap).tanh() * cap


def _attention(
    parts: DecoderParts,
    layer: LayerParts,
    hidden: torch.Tensor,
    positions: torch.Tensor,
    metadata: AttentionMetadata,
    cache: LayerKV | None,
) -> torch.Tensor:
    sizes = [parts.num_heads, parts.num_kv_heads, parts.num_kv_heads]
    qkv = _project(layer.qkv, _norm(layer.input_norm, hidden))
    heads = torch.split(qkv.view(len(hidden), -1, parts.head_dim), sizes, dim=1)
    query, key = _norm(layer.query_norm, heads[0]), _norm(layer.key_norm, heads[1])
    if layer.rope is not None:
        frequencies, scale = parts.ropes[layer.rope]
        query = rotary_reference(query, positions, frequencies, scale)
        key = rotary_reference(key, positions, frequencies, scale)
    query, key, value = (x.bfloat16() for x in (query, key, heads[2]))
    if cache is not None:
        assert metadata.slot_mapping is not None, "a cache comes with slots"
        store_kv_reference(cache[0], key, metadata.slot_mapping)
        store_kv_reference(cache[1], value, metadata.slot_mapping)
        key, value = cache
    attended = paged_attention_reference(
        query.float(),
        key.float(),
        value.float(),
        metadata,
        parts.attention_scale,
        layer.window,
        parts.attention_soft_cap,
    )
    return _project(layer.output, attended.flatten(1))


def _norm(norm: NormPart | None, x: torch.Tensor) -> torch.Tensor:
    if norm is None:
        return x
    shape, gain = (x.shape[-1],), norm.gain.float()
    if norm.bias is None:
        return F.rms_norm(x, shape, gain, norm.eps)
    return F.layer_norm(x, shape, gain, norm.bias.float(), norm.eps)


def _project(parts: Projection, x: torch.Tensor) -> torch.Tensor:
    outputs = []
    for part in parts:
        matrix, bias = part.tensors["data"], part.tensors.get("bias")
        assert matrix.dtype is torch.bfloat16, "bfloat16 rows"
        out = x.bfloat16().float() @ matrix.float().T
        outputs.append(out if bias is None else out + bias[: len(matrix)])
    return torch.cat(outputs, dim=-1)


def _activate(x: torch.Tensor, activation: str, gated: bool) -> torch.Tensor:
    gate, up = x.chunk(2, dim=-1) if gated else (x, None)
    match activation:
        case "silu":
            gate = F.silu(gate)
        case "relu":
            gate = F.relu(gate)
        case _:
            gate = F.gelu(gate, approximate="tanh" if activation == "gelu_tanh" else "none")
    return gate if up is None else gate * up
