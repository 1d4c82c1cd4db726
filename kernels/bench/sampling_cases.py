"""Sampling and rejection sampling of a batch of rows over a whole vocabulary.

Knows nothing of timing. The law: tokens are those of the definition, but for a draw that lies on
the border between two of them.
"""

from collections.abc import Callable, Iterator
from functools import cache, partial
from typing import Any

import torch

from bench.case import OURS, Case, Contender, randn
from bench.shapes import Shapes
from llmopt.layers.sampler import SamplingRow, row_params, sample
from llmopt_kernels.dispatch import uses_triton
from llmopt_kernels.rejection.draft_params import DraftFacts, DraftKind, pack_drafts
from llmopt_kernels.rejection.reference import reject_reference
from llmopt_kernels.sampling.reference import kept_probs_reference, sample_reference

_SPREAD = 4.0  # of logits
_SETTINGS: dict[str, tuple[float, int | None, float]] = {  # temperature, top-k, top-p
    "greedy": (0.0, None, 1.0),
    "temperature": (0.8, None, 1.0),
    "top-k 50 top-p 0.9": (0.8, 50, 0.9),
}
_UNLIMITED = 1 << 30


def sampling_cases(device: torch.device, shapes: Shapes) -> Iterator[Case]:
    """Rows that are all greedy, drawn from everything, or from what top-k and top-p leave."""
    for num_rows in shapes.batches:
        logits = (randn(device, num_rows, shapes.vocab_size) * _SPREAD).bfloat16()
        for name, (temperature, top_k, top_p) in _SETTINGS.items():
            rows = [
                SamplingRow(temperature, top_k, top_p, seed=seed, position=0)
                for seed in range(num_rows)
            ]
            yield _sampling_case(logits, rows, name)


def _sampling_case(logits: torch.Tensor, rows: list[SamplingRow], name: str) -> Case:
    ours: Callable[[], object] = partial(sample, logits, rows)
    if uses_triton(logits):
        from llmopt_kernels.sampling.triton import sample_triton

        ours = partial(sample_triton, logits, row_params(rows, pinned=False).to(logits.device))
    num_rows = len(rows)
    result_bytes = 8 * num_rows
    return Case(
        "sampling",
        f"{name} v{logits.shape[1]}",
        num_rows,
        (
            Contender(OURS, ours, logits.nbytes + result_bytes),
            Contender(
                "torch",
                partial(_sample_by_torch, logits, rows[0]),
                logits.nbytes + result_bytes,
                check=_tokens_exist,
            ),
        ),
        partial(_drawn_problem, cache(lambda: _defined(logits, rows))),
    )


def _defined(logits: torch.Tensor, rows: list[SamplingRow]) -> list[int]:
    return [
        sample_reference(
            scores,
            row.temperature,
            row.top_k or _UNLIMITED,
            row.top_p,
            row.min_p,
            row.seed,
            row.position,
        )
        for scores, row in zip(logits, rows, strict=True)
    ]


def _drawn_problem(defined: Any, out: Any) -> str | None:
    tokens = out[0].tolist() if isinstance(out, torch.Tensor) else out
    wrong = sum(found != token for found, token in zip(tokens, defined(), strict=True))
    return None if wrong <= len(tokens) // 32 else f"{wrong} of {len(tokens)} tokens are others"


def _tokens_exist(out: Any) -> str | None:
    """Its draws are others: its random stream is not ours."""
    return None if int(out.min()) >= 0 else "a token below 0"


def _sample_by_torch(logits: torch.Tensor, row: SamplingRow) -> torch.Tensor:
    """Softmax, sorting and multinomial, as without a kernel."""
    if row.temperature == 0:
        return logits.argmax(dim=-1, keepdim=True)
    scores = logits.float() / row.temperature
    if row.top_k is None and row.top_p == 1:
        return torch.softmax(scores, dim=-1).multinomial(1)
    ranked, tokens = scores.topk(row.top_k or scores.shape[1], dim=-1)
    probs = torch.softmax(ranked, dim=-1)
    before = probs.cumsum(dim=-1) - probs
    chosen = probs.masked_fill(before >= row.top_p, 0.0).multinomial(1)
    return tokens.gather(1, chosen)


def rejection_cases(device: torch.device, shapes: Shapes) -> Iterator[Case]:
    """One drawn token of each request, taken or replaced; on a GPU."""
    for num_requests in shapes.batches if uses_triton(torch.empty(0, device=device)) else ():
        yield _rejection_case(device, shapes.vocab_size, num_requests)


def _rejection_case(device: torch.device, vocab_size: int, num_requests: int) -> Case:
    from llmopt_kernels.rejection.triton import verify_triton

    logits = (randn(device, 2 * num_requests, vocab_size) * _SPREAD).bfloat16()
    rows = [
        SamplingRow(1.0, None, 1.0, seed=seed, position=position)
        for seed in range(num_requests)
        for position in range(2)
    ]
    proposed = torch.softmax(logits[::2].double() * 0.7, dim=-1).float()
    token_ids = proposed.argmax(dim=-1).tolist()
    facts = [DraftFacts((token_id,), DraftKind.DRAWN) for token_id in token_ids]
    drafts = pack_drafts(facts, proposed, pinned=False).to(device)
    params = row_params(rows, pinned=False).to(device)

    @cache
    def defined() -> list[tuple[int, int | None]]:
        found = []
        for index, token_id in enumerate(token_ids):
            kept = kept_probs_reference(logits[2 * index], 1.0, _UNLIMITED, 1.0, 0.0)
            target = (kept / kept.sum())[None]
            found.append(
                reject_reference(target, proposed[index : index + 1], [token_id], index, 0)
            )
        return found

    def check(out: Any) -> str | None:
        taken, tokens, _ = out.tolist()
        wrong = sum(
            (count, token if token is None else tokens[i]) != (taken[i], token)
            for i, (count, token) in enumerate(defined())
        )
        return None if wrong <= len(taken) // 32 else f"{wrong} of {len(taken)} requests are others"

    num_bytes = logits.nbytes + proposed.nbytes
    ours = Contender(OURS, partial(verify_triton, logits, params, drafts), num_bytes)
    return Case("rejection", f"one drawn token v{vocab_size}", num_requests, (ours,), check)
