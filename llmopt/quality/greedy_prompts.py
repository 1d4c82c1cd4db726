"""Prompts of a greedy comparison: pieces of the evaluation text, or a file of prompts.

Knows nothing about models. The law it keeps: the same options, files and tokenizer always give the
same prompts.
"""

import json
from dataclasses import dataclass
from pathlib import Path

from llmopt.errors import UsageError
from llmopt.models.tokenizer import Tokenizer
from llmopt.quality.options import QualityOptions
from llmopt.quality.text import load_windows
from llmopt.recipe.schema import BUNDLED_TEXT


@dataclass(frozen=True, slots=True)
class GreedyOptions:
    """Which prompts, and how much to generate. Raises UsageError if impossible.

    prompts: a file of prompts, of which the first `num_prompts` are taken, whole: JSON lines (name
        ends in .jsonl; a string each, or an object with a "prompt"), or text, a prompt per line
    text: without such a file, the text that is cut into prompts of `prompt_tokens` tokens
    """

    prompts: Path | None = None
    text: str = BUNDLED_TEXT
    num_prompts: int = 32
    prompt_tokens: int = 64
    max_new_tokens: int = 128
    confidence: float = 0.95
    num_resamples: int = 10_000  # of the bootstrap
    seed: int = 0  # of the bootstrap

    def __post_init__(self) -> None:
        least = {
            "num_prompts": (self.num_prompts, 2),
            "prompt_tokens": (self.prompt_tokens, 2),
            "max_new_tokens": (self.max_new_tokens, 1),
            "num_resamples": (self.num_resamples, 100),
        }
        for name, (value, limit) in least.items():
            if value < limit:
                raise UsageError(f"{name} is {value}", f"Give at least {limit}.")
        if not 0 < self.confidence < 1:
            raise UsageError(
                f"the confidence is {self.confidence}",
                "Choose a confidence between 0 and 1; 0.95 is usual.",
            )


def load_prompts(tokenizer: Tokenizer, options: GreedyOptions) -> tuple[str, list[list[int]]]:
    """Where the prompts come from, in words, and the token ids of each.

    Raises UsageError when a file cannot be read or has no two prompts, or the text is too short.
    """
    if options.prompts is None:
        return _pieces(tokenizer, options)
    texts = _read_prompts(options.prompts)[: options.num_prompts]
    token_ids = [ids for ids in map(tokenizer.encode, texts) if ids]
    if len(token_ids) < 2:
        raise UsageError(
            f"{options.prompts} has {len(token_ids)} prompts, which give no interval",
            "Give a file of at least 2 prompts; 32 or more are usual.",
        )
    return f"the first {len(token_ids)} prompts of {options.prompts.name}", token_ids


def _pieces(tokenizer: Tokenizer, options: GreedyOptions) -> tuple[str, list[list[int]]]:
    windows = load_windows(
        tokenizer,
        QualityOptions(
            text=options.text, window=options.prompt_tokens, num_windows=options.num_prompts
        ),
    )
    source = (
        f"{len(windows.windows)} pieces of {options.prompt_tokens} tokens of {windows.text_name}"
    )
    return source, [window.token_ids.tolist() for window in windows.windows]


def _read_prompts(path: Path) -> list[str]:
    """The prompts of a file, without empty ones."""
    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not UTF-8"
        raise UsageError(
            f"the prompts {path} cannot be read: {reason}",
            "Give a readable UTF-8 file of prompts, JSON lines (.jsonl) or one per line.",
        ) from error
    numbered = [(number, line.strip()) for number, line in enumerate(lines, 1) if line.strip()]
    if path.suffix != ".jsonl":
        return [line for _, line in numbered]
    return [_json_prompt(line, path, number) for number, line in numbered]


def _json_prompt(line: str, path: Path, number: int) -> str:
    try:
        value = json.loads(line)
    except ValueError:
        value = None
    prompt = value.get("prompt") if isinstance(value, dict) else value
    if not isinstance(prompt, str):
        raise UsageError(
            f"line {number} of {path} is no prompt: {line[:60]!r}",
            'Write each line as {"prompt": "..."} or as a JSON string.',
        )
    return prompt
