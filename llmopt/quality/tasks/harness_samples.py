"""The samples that lm-evaluation-harness logs, as requests that can be replayed.

Knows nothing about files or models. The law it keeps: the right choice is what the sample itself
says; a sample that does not say it beyond doubt is refused.

Format (`SampleResult` of lm_eval/result_schema.py, written by its EvaluationTracker since 0.4.4):
`arguments` is {"gen_args_0": {"arg_0": context, "arg_1": continuation}, ...}, one entry per
choice; `target` is `str()` of the right index, of the right choice's text, or of the text to be
produced; `filter` names the filter behind the recorded answers. Versions before wrote `arguments`
as lists of pairs.
"""

from dataclasses import dataclass
from typing import Any


class SampleError(Exception):
    """Why a sample cannot be replayed."""


@dataclass(frozen=True, slots=True)
class HarnessSample:
    """A context, what may follow it, and the index of what should (None: the only one)."""

    id: str
    context: str
    continuations: tuple[str, ...]
    gold: int | None


def read_sample(row: dict[str, Any]) -> HarnessSample:
    """Take the requests out of one logged sample. Raises SampleError."""
    if type(row.get("doc_id")) is not int or "target" not in row:
        raise SampleError("it has no doc_id or no target")
    pairs = _without_unconditional(_pairs(row["arguments"]))
    contexts = {context for context, _ in pairs}
    if len(contexts) > 1:
        raise SampleError(
            "its choices are in the contexts (as in WinoGrande), and the right one is not recorded"
        )
    continuations = tuple(continuation for _, continuation in pairs)
    gold = None if len(pairs) == 1 else _gold(str(row["target"]), continuations)
    return HarnessSample(str(row["doc_id"]), contexts.pop(), continuations, gold)


def _pairs(arguments: object) -> list[tuple[str, str]]:
    """Context and continuation of every request."""
    if isinstance(arguments, dict):
        entries = [
            list(entry.values()) if isinstance(entry, dict) else entry
            for entry in arguments.values()
        ]
    elif isinstance(arguments, list):
        entries = arguments
    else:
        raise SampleError("its arguments are neither an object nor a list")
    pairs = []
    for entry in entries:
        match entry:
            case [str(context), str(continuation)] if continuation:
                pairs.append((context, continuation))
            case _:
                raise SampleError("it asks for other things than log-likelihoods")
    if not pairs:
        raise SampleError("it has no arguments")
    return pairs


def _without_unconditional(pairs: list[tuple[str, str]]) -> list[tuple[str, str]]:
    """Leave out a second half that repeats the choices without context (`acc_mutual_info`)."""
    half = len(pairs) // 2
    first, second = pairs[:half], pairs[half:]
    repeated = [("", continuation) for _, continuation in first]
    return first if half and second == repeated and first != second else pairs


def _gold(target: str, continuations: tuple[str, ...]) -> int:
    """The right choice, from its index or its text."""
    texts = [continuation.strip() for continuation in continuations]
    by_text = [index for index, text in enumerate(texts) if text == target.strip()]
    by_index = [int(target)] if target.isdecimal() and int(target) < len(texts) else []
    golds = set(by_index + by_text)
    if len(golds) != 1:
        said = "fits several choices" if golds else "is none of its choices"
        raise SampleError(f"its target {target!r} {said}")
    return golds.pop()
