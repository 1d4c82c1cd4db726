"""A mixture of experts (Shazeer et al., 2017, with the router of Fedus et al., 2021), one token at
a time.

p = softmax(logits) over all experts; the k largest are chosen, and y = sum of p_e * expert_e(x)
over them, with p divided by the sum of the chosen ones if the model normalizes it.
"""

from collections.abc import Callable, Sequence

import torch


def mixture_reference(
    x: torch.Tensor,
    logits: torch.Tensor,
    num_chosen: int,
    normalize: bool,
    experts: Sequence[Callable[[torch.Tensor], torch.Tensor]],
) -> torch.Tensor:
    """x: [T, C]; logits: [T, E]; returns [T, C] in x's dtype, summed up in float64."""
    out = torch.empty_like(x)
    for token, scores in enumerate(logits.double()):
        probabilities = scores.softmax(dim=0)
        chosen = probabilities.argsort(descending=True)[:num_chosen].tolist()
        total = probabilities[chosen].sum() if normalize else 1.0
        mixed = torch.zeros(x.shape[1], dtype=torch.float64, device=x.device)
        for expert in chosen:
            output = experts[expert](x[token : token + 1])[0].double()
            mixed += output * probabilities[expert] / total
        out[token] = mixed.to(x.dtype)
    return out
