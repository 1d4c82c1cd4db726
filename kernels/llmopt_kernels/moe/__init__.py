"""A mixture of experts: each token goes to a few of them, and each expert computes its tokens at
once.
"""

from collections.abc import Callable, Sequence

import torch

Expert = Callable[[torch.Tensor], torch.Tensor]  # [t, C] -> [t, C]


def route(
    logits: torch.Tensor, num_chosen: int, normalize: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    """The experts of each token and their weights, both [T, num_chosen]: float32 and int64.

    logits: [T, E]; the weights are probabilities over all experts, divided by their sum if
    `normalize`. See `reference.py`.
    """
    weights, experts = logits.float().softmax(dim=-1).topk(num_chosen, dim=-1)
    return (weights / weights.sum(dim=-1, keepdim=True) if normalize else weights), experts


def mix_experts(
    x: torch.Tensor, weights: torch.Tensor, chosen: torch.Tensor, experts: Sequence[Expert]
) -> torch.Tensor:
    """The weighted sum of the chosen experts' outputs. x: [T, C]; returns [T, C] in x's dtype.

    Tokens are gathered expert by expert, so an expert that nobody chose reads no weights. What a
    token gets does not depend on the others but for rounding: its experts are added in the order of
    their numbers.
    """
    num_chosen = chosen.shape[1]
    flat = chosen.flatten()
    order = flat.argsort(stable=True)  # pairs of token and choice, by expert
    counts: list[int] = flat.bincount(minlength=len(experts)).tolist()
    tokens = order // num_chosen
    parts = torch.split(x[tokens], counts)
    outputs = [experts[e](part) for e, part in enumerate(parts) if counts[e]]
    weighted = torch.cat(outputs).float() * weights.flatten()[order, None]
    mixed = torch.zeros(x.shape, dtype=torch.float32, device=x.device)
    return mixed.index_add_(0, tokens, weighted).to(x.dtype)


__all__ = ["Expert", "mix_experts", "route"]
