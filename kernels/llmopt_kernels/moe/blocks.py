"""Which tokens each expert computes, in blocks of one expert each, found without asking the GPU.

Pairs of a token and one of its experts are sorted by expert, so an expert's pairs are neighbours;
each expert's pairs are cut into blocks. How many blocks there are is only known on the device, so
there is room for the most there can be, and those beyond the last belong to no expert.
The law: every pair is in exactly one block, and nothing here waits for the device.
"""

from dataclasses import dataclass

import torch


@dataclass(frozen=True, slots=True)
class ExpertBlocks:
    """P = T * k pairs, sorted by expert and then by token, in blocks; all on the device.

    tokens:    int32 [P] the token of each pair
    expert:    int32 [B] the expert of each block; the number of experts: the block is empty
    first:     int32 [B] its first pair
    end:       int32 [B] the end of the pairs of its expert
    positions: int32 [T, k] where the pairs of each token are, in rising order: that of the experts
    weights:   float32 [T, k] their weights in the same order
    """

    tokens: torch.Tensor
    expert: torch.Tensor
    first: torch.Tensor
    end: torch.Tensor
    positions: torch.Tensor
    weights: torch.Tensor

    @property
    def num_pairs(self) -> int:
        """P."""
        return len(self.tokens)


def max_blocks(num_pairs: int, num_experts: int, block_size: int) -> int:
    """The most blocks that this many pairs can be cut into: all full but one of each expert."""
    return num_pairs // block_size + min(num_pairs, num_experts)


def expert_blocks(
    chosen: torch.Tensor, weights: torch.Tensor, num_experts: int, block_size: int
) -> ExpertBlocks:
    """chosen: int64 [T, k], the experts of each token; weights: float32 [T, k]."""
    num_tokens, num_chosen = chosen.shape
    device, flat = chosen.device, chosen.flatten()
    pairs = torch.arange(len(flat), device=device)
    order = flat.argsort(stable=True)
    positions = torch.empty_like(pairs).scatter_(0, order, pairs).view(num_tokens, num_chosen)
    positions, rank = positions.sort(dim=1)

    counts = torch.zeros(num_experts + 1, dtype=torch.int64, device=device)
    counts.scatter_add_(0, flat, torch.ones_like(flat))
    ends = counts.cumsum(0)
    num_blocks = (counts + block_size - 1) // block_size
    block_ends = num_blocks.cumsum(0)
    blocks = torch.arange(max_blocks(len(flat), num_experts, block_size), device=device)
    expert = torch.searchsorted(block_ends[:-1], blocks, right=True)
    within = blocks - (block_ends - num_blocks)[expert]
    first = (ends - counts)[expert] + within * block_size
    return ExpertBlocks(
        tokens=(order // num_chosen).to(torch.int32),
        expert=expert.to(torch.int32),
        first=first.to(torch.int32),
        end=ends[expert].to(torch.int32),
        positions=positions.to(torch.int32),
        weights=weights.gather(1, rank),
    )
