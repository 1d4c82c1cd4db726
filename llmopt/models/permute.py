"""An exact, function-preserving renumbering of the channels of a decoder.

Weights that were once quantized in groups lie on the grid of those groups; quantizing them again in
the same groups looks lossless and says nothing. Renumbering the channels spreads each old group
over many new ones, while values, outliers and the function of the model stay what they were.

Knows nothing about files or quantization. The law: logits stay equal up to the order of summation.
Three kinds of channels can be renumbered freely, each with one permutation for all its users:

    residual stream    embedding columns, norms before and behind attention and MLP, the final norm,
                       inputs of q k v gate up lm_head, outputs of o down
    MLP intermediate   rows of gate and up, columns of down; per layer
    value channels     rows of v, columns of o; per layer, within each key/value head

Query and key channels stay, and so do the norms of their heads: rotary positions tie each of them
to its partner.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch

EMBEDDING = "model.embed_tokens.weight"
_HEAD_NORMS = ("q_norm", "k_norm")


@dataclass(frozen=True, slots=True)
class _LayerOrder:
    """Where the channels of one layer come from: new channel i is old channel order[i]."""

    intermediate: torch.Tensor  # int64 [intermediate]
    value: torch.Tensor  # int64 [KH * D], rows of v
    attention_output: torch.Tensor  # int64 [H * D], columns of o


def permute_channels(
    tensors: Mapping[str, torch.Tensor], *, num_heads: int, num_kv_heads: int, seed: int
) -> dict[str, torch.Tensor]:
    """The same model with its channels renumbered, deterministic in `seed`.

    tensors: a whole model of a supported architecture under Hugging Face names, any dtype, biases
    allowed; it is left unchanged. The result has the same names, shapes and dtypes.
    """
    generator = torch.Generator().manual_seed(seed)
    residual = torch.randperm(tensors[EMBEDDING].shape[1], generator=generator)
    num_layers = sum(name.endswith("self_attn.v_proj.weight") for name in tensors)
    orders = [
        _draw_layer_order(tensors, layer, num_heads, num_kv_heads, generator)
        for layer in range(num_layers)
    ]
    return {name: _permute(name, tensor, residual, orders) for name, tensor in tensors.items()}


def _draw_layer_order(
    tensors: Mapping[str, torch.Tensor],
    layer: int,
    num_heads: int,
    num_kv_heads: int,
    generator: torch.Generator,
) -> _LayerOrder:
    prefix = f"model.layers.{layer}"
    intermediate_size = tensors[f"{prefix}.mlp.gate_proj.weight"].shape[0]
    head_dim = tensors[f"{prefix}.self_attn.v_proj.weight"].shape[0] // num_kv_heads
    within = torch.stack(
        [torch.randperm(head_dim, generator=generator) for _ in range(num_kv_heads)]
    )  # [KH, D]
    kv_head_of = torch.arange(num_heads) // (num_heads // num_kv_heads)  # [H]
    return _LayerOrder(
        intermediate=torch.randperm(intermediate_size, generator=generator),
        value=_across_heads(within),
        attention_output=_across_heads(within[kv_head_of]),
    )


def _across_heads(within: torch.Tensor) -> torch.Tensor:
    """Orders within heads [heads, D] -> one order of all their channels [heads * D]."""
    heads, head_dim = within.shape
    return (within + head_dim * torch.arange(heads)[:, None]).flatten()


def _permute(
    name: str, tensor: torch.Tensor, residual: torch.Tensor, orders: list[_LayerOrder]
) -> torch.Tensor:
    rows, columns = _orders_of(name, residual, orders)
    if rows is not None:
        tensor = tensor[rows]
    if columns is not None and tensor.dim() == 2:
        tensor = tensor[:, columns]
    return tensor.contiguous()


def _orders_of(
    name: str, residual: torch.Tensor, orders: list[_LayerOrder]
) -> tuple[torch.Tensor | None, torch.Tensor | None]:
    """The order of the rows (or of a vector's entries) and of the columns of one tensor."""
    parts = name.split(".")
    module = parts[-2]
    if module in ("embed_tokens", "lm_head"):
        return None, residual
    if module in _HEAD_NORMS:
        return None, None
    if module.endswith("norm"):
        return residual, None
    order = orders[int(parts[2])]
    of_module: dict[str, tuple[torch.Tensor | None, torch.Tensor | None]] = {
        "q_proj": (None, residual),
        "k_proj": (None, residual),
        "v_proj": (order.value, residual),
        "o_proj": (residual, order.attention_output),
        "gate_proj": (order.intermediate, residual),
        "up_proj": (order.intermediate, residual),
        "down_proj": (residual, order.intermediate),
    }
    return of_module[module]
