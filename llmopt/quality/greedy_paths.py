"""What models would choose on the base's greedy path: the base's output, read by each of them.

Knows nothing about shares or intervals. The law it keeps: every reader is asked at the same
positions, and gaps are the base's own.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from llmopt.errors import ModelError
from llmopt.quality.source import ModelLogits, ScorableModel, rows_per_chunk
from llmopt.quality.windows import Window


@dataclass(frozen=True, slots=True, eq=False)
class Choices:
    """What a model would choose on the base's path of n tokens, each [n]."""

    token_ids: Tensor  # int64
    gap_nats: Tensor  # float64, by which the base prefers its own token to that one
    moved_nats: Tensor  # float64, change of the gap between the base's two likeliest tokens


@dataclass(frozen=True, slots=True, eq=False)
class GreedyPath:
    """A prompt, the n tokens that the base generated, and what it and others think of them."""

    prompt: list[int]
    output: list[int]
    gap: Tensor  # float64 [n], between the base's two likeliest tokens, in probability
    gap_nats: Tensor  # float64 [n], the same in log-probability
    choices: tuple[Choices, ...]  # one per reader


def read_path(
    base: ScorableModel, readers: Sequence[ScorableModel], prompt: list[int], output: list[int]
) -> GreedyPath:
    """Let the base and all readers read a prompt and the base's output."""
    window = Window(torch.tensor([*prompt, *output]), num_scored=len(output), num_bytes=0)
    sources = [ModelLogits(model, name="", scheme="") for model in (base, *readers)]
    tokens = torch.split(window.next_tokens, rows_per_chunk(base.config.vocab_size))
    gaps: list[tuple[Tensor, Tensor]] = []
    choices: list[list[Choices]] = [[] for _ in readers]
    for own, *chunks in zip(tokens, *(source.chunks(window) for source in sources), strict=True):
        base_logits, *others = (chunk.cpu().float() for chunk in chunks)  # [n, V] each
        second = base_logits.scatter(1, own.unsqueeze(1), -torch.inf).argmax(dim=1)
        of_own, of_second = _pick(base_logits, own), _pick(base_logits, second)
        normalizer = base_logits.logsumexp(dim=1).double()
        gap_nats = of_own - of_second
        gaps.append(((of_own - normalizer).exp() - (of_second - normalizer).exp(), gap_nats))
        for kept, logits in zip(choices, others, strict=True):
            if not bool(logits.isfinite().all()):
                raise _not_finite()
            chosen = logits.argmax(dim=1)
            moved = _pick(logits, own) - _pick(logits, second) - gap_nats
            kept.append(Choices(chosen, of_own - _pick(base_logits, chosen), moved.abs()))
    return GreedyPath(
        prompt=prompt,
        output=output,
        gap=torch.cat([gap for gap, _ in gaps]).clamp(min=0.0),
        gap_nats=torch.cat([nats for _, nats in gaps]).clamp(min=0.0),
        choices=tuple(map(_concatenate, choices)),
    )


def _pick(rows: Tensor, columns: Tensor) -> Tensor:
    """One value of each row: [n, V], [n] -> float64 [n]."""
    return rows.gather(1, columns.unsqueeze(1)).squeeze(1).double()


def _concatenate(parts: Sequence[Choices]) -> Choices:
    return Choices(
        token_ids=torch.cat([part.token_ids for part in parts]),
        gap_nats=torch.cat([part.gap_nats for part in parts]),
        moved_nats=torch.cat([part.moved_nats for part in parts]),
    )


def _not_finite() -> ModelError:
    return ModelError(
        "the model gives NaN or infinite logits",
        "Run it in float32 or bfloat16; if that does not help, its weights are damaged: make it"
        " again.",
    )
