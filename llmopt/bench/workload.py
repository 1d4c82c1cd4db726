"""The prompts of a run: cut from a text, of exact length, each with a beginning of its own.

Knows nothing about models or backends: a text is a sequence of token ids. The law: within a run,
warm-up included, no two prompts begin with the same token, so a prefix cache has nothing to find;
the same seed gives the same prompts to every target.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from llmopt.errors import UsageError


@dataclass(frozen=True, slots=True)
class RunPrompts:
    """Token ids of the requests of one run."""

    warmup: tuple[tuple[int, ...], ...]
    measured: tuple[tuple[int, ...], ...]


def make_prompts(
    text_token_ids: Sequence[int],
    *,
    num_warmup: int,
    num_measured: int,
    prompt_tokens: int,
    seed: Sequence[int],
) -> RunPrompts:
    """Cut the prompts of one run at random places of the text.

    A place whose token already begins another prompt is passed over. Raises `UsageError` when the
    text is too short, or repeats itself too much, for that.
    """
    wanted = num_warmup + num_measured
    num_places = max(0, len(text_token_ids) - prompt_tokens + 1)
    order = np.random.default_rng(seed).permutation(num_places)
    starts: dict[int, int] = {}  # first token id -> place
    for place in order.tolist():
        if len(starts) == wanted:
            break
        starts.setdefault(text_token_ids[place], place)
    if len(starts) < wanted:
        raise UsageError(
            f"a run needs {wanted} prompts of {prompt_tokens} tokens, and the text of"
            f" {len(text_token_ids)} tokens has only {len(starts)} that begin differently",
            "Ask for fewer requests or shorter prompts.",
        )
    prompts = tuple(tuple(text_token_ids[at : at + prompt_tokens]) for at in starts.values())
    return RunPrompts(warmup=prompts[:num_warmup], measured=prompts[num_warmup:])
