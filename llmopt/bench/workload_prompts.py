"""Prompts of exact length, each with a beginning of its own, from a text or at random.

Knows nothing about models or backends: a text is a sequence of token ids. The law: no two prompts
of one call begin with the same few tokens (the same first one, if the text has tokens enough), so a
prefix cache has nothing to find; the same seed gives the same prompts.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from llmopt.errors import UsageError

MAX_BEGINNING = 8  # tokens: less than a block of any cache that keeps blocks
Prompt = tuple[int, ...]


def cut_prompts(
    text_token_ids: Sequence[int], lengths: Sequence[int], seed: Sequence[int]
) -> list[Prompt]:
    """Cut one prompt of each length at random places of the text.

    A place whose first token already begins another prompt is passed over; where the text has too
    few different tokens for that, the first two have to differ, and so on up to `MAX_BEGINNING`.
    Raises UsageError when the text is too short, or repeats itself too much.
    """
    longest, shortest = max(lengths, default=0), min(lengths, default=0)
    num_places = max(0, len(text_token_ids) - longest + 1)
    order = np.random.default_rng(seed).permutation(num_places).tolist()
    starts: dict[Prompt, int] = {}
    for size in range(1, min(MAX_BEGINNING, shortest) + 1):
        starts = {}
        for place in order:
            if len(starts) == len(lengths):
                break
            starts.setdefault(tuple(text_token_ids[place : place + size]), place)
        if len(starts) == len(lengths):
            break
    if len(starts) < len(lengths):
        raise UsageError(
            f"a run needs {len(lengths)} prompts of up to {longest} tokens, and the text of"
            f" {len(text_token_ids)} tokens has only {len(starts)} that begin differently",
            "Ask for fewer requests or shorter prompts, or for random tokens.",
        )
    places = zip(starts.values(), lengths, strict=True)
    return [tuple(text_token_ids[place : place + length]) for place, length in places]


def random_prompts(
    text_token_ids: Sequence[int], lengths: Sequence[int], seed: Sequence[int]
) -> list[Prompt]:
    """Draw the tokens of each prompt from those that occur in the text, all alike.

    Raises UsageError when there are too few different tokens for prompts that begin differently.
    """
    vocabulary = np.unique(np.asarray(text_token_ids, dtype=np.int64))
    rng = np.random.default_rng(seed)
    size = min(MAX_BEGINNING, min(lengths, default=1))
    # half of all beginnings stay free, so that drawing anew soon finds one
    if len(vocabulary) ** size < 2 * len(lengths):
        raise UsageError(
            f"{len(lengths)} random prompts need more than the {len(vocabulary)} different tokens"
            f" of the text",
            "Ask for fewer requests or longer prompts.",
        )
    seen: set[Prompt] = set()
    prompts: list[Prompt] = []
    for length in lengths:
        while True:
            prompt = tuple(vocabulary[rng.integers(len(vocabulary), size=length)].tolist())
            if prompt[:size] not in seen:
                break
        seen.add(prompt[:size])
        prompts.append(prompt)
    return prompts


@dataclass(frozen=True, slots=True)
class UserPrompt:
    """One prompt of a file. `output_tokens` None: what the load says."""

    token_ids: Prompt
    output_tokens: int | None


def read_prompts(path: str | Path, encode: Callable[[str], Sequence[int]]) -> list[UserPrompt]:
    """Read a JSONL file: on each line an object with "prompt", and "output_tokens" if it likes.

    Raises UsageError with the line of what is wrong.
    """
    path = Path(path)
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(
            f"the prompts {path} cannot be read ({type(error).__name__})", "Check the path."
        ) from error
    prompts = [
        _user_prompt(f"{path}:{number}", line, encode)
        for number, line in enumerate(lines, start=1)
        if line.strip()
    ]
    if not prompts:
        raise UsageError(f"there are no prompts in {path}", "Add a line with a prompt.")
    return prompts


def _user_prompt(where: str, line: str, encode: Callable[[str], Sequence[int]]) -> UserPrompt:
    try:
        row = json.loads(line)
    except ValueError as error:
        raise UsageError(f"{where}: not JSON", "Mend or remove the line.") from error
    text = row.get("prompt") if isinstance(row, dict) else None
    output_tokens = row.get("output_tokens") if isinstance(row, dict) else None
    if not isinstance(text, str) or not text:
        raise UsageError(f'{where}: there is no "prompt"', "Give it as text.")
    if output_tokens is not None and (type(output_tokens) is not int or output_tokens < 1):
        raise UsageError(
            f"{where}: output_tokens is {output_tokens!r}", "Give a whole number above 0."
        )
    return UserPrompt(tuple(encode(text)), output_tokens)
