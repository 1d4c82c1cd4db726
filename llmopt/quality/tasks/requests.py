r"""Ready log-likelihood requests from JSON lines files: tasks without a hub.

Knows nothing about models or tokens. The law it keeps: a file is read whole and strictly, and what
is wrong with it is said with its file and line; no item is dropped in silence.

Three kinds of lines are understood, one item per line, UTF-8:

Multiple choice (HellaSwag, ARC, PIQA). A choice is put behind the context as it is, so it usually
begins with a space; `gold` counts from 0:

    {"id": "17", "context": "Water boils at", "choices": [" 100 °C", " 10 °C"], "gold": 0}

A target that greedy decoding must produce (LAMBADA):

    {"id": "3", "context": "He gave it to", "target": " Mary"}

Both may carry `"task": "name"`; without it the task is called as the file. The third kind is what
lm-evaluation-harness writes with `--log_samples` (`samples_TASK_DATE.jsonl`; 0.4): run a task once
where there is a hub, with any model, and replay its requests anywhere.
"""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from llmopt.errors import UsageError
from llmopt.quality.tasks.harness_samples import SampleError, read_sample

_FIELDS = {"id", "task", "context", "choices", "gold", "target"}
_HARNESS_NAME = re.compile(r"samples_(?P<task>.+)_\d{4}-\d{2}-\d{2}T[\d.-]+")


@dataclass(frozen=True, slots=True)
class TaskRequest:
    """One item: texts that may follow a context, and which of them is right.

    gold: index of the right continuation; None: the only one, to be produced by greedy decoding
    """

    id: str
    task: str
    context: str
    continuations: tuple[str, ...]
    gold: int | None


RequestsByTask = Mapping[str, Sequence[TaskRequest]]


def read_requests(paths: Sequence[Path]) -> dict[str, tuple[TaskRequest, ...]]:
    """Read request files -> the items of every task, tasks and items in the files' order.

    Raises UsageError, naming file and line, for a file that cannot be read or has no items, and
    for an item that is malformed or comes twice.
    """
    found: dict[str, dict[str, TaskRequest]] = {}
    for path in paths:
        for number, line in _lines(path):
            where = f"{path}:{number}"
            request = _parse(line, where, _task_name(path), found)
            if request is None:
                continue
            items = found.setdefault(request.task, {})
            if request.id in items:
                _refuse(where, f"the task {request.task!r} has the item {request.id!r} twice")
            items[request.id] = request
    return {task: tuple(items.values()) for task, items in found.items()}


def _lines(path: Path) -> list[tuple[int, str]]:
    """Numbered lines that are not blank."""
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise UsageError(
            f"the request file {path} cannot be read: {error.strerror}", "Give a readable file."
        ) from error
    except UnicodeDecodeError as error:
        raise UsageError(
            f"the request file {path} is not UTF-8 (byte {error.start})", "Convert it to UTF-8."
        ) from error
    numbered = enumerate(text.split("\n"), start=1)
    lines = [(number, line) for number, line in numbered if line.strip()]
    if not lines:
        raise UsageError(f"the request file {path} has no items", "Give one item per line.")
    return lines


def _task_name(path: Path) -> str:
    match = _HARNESS_NAME.fullmatch(path.stem)
    return match["task"] if match else path.stem


def _parse(
    line: str, where: str, task: str, found: Mapping[str, Mapping[str, TaskRequest]]
) -> TaskRequest | None:
    """One item; None for another filter's copy of an item that lm-evaluation-harness logged."""
    try:
        row = json.loads(line)
    except ValueError as error:
        _refuse(where, f"this is not JSON ({error})")
    if not isinstance(row, dict):
        _refuse(where, "an item is a JSON object")
    if "arguments" not in row:
        return _own(row, where, task)
    try:
        sample = read_sample(row)
    except SampleError as error:
        _refuse(where, f"this sample of lm-evaluation-harness cannot be replayed: {error}")
    request = TaskRequest(sample.id, task, sample.context, sample.continuations, sample.gold)
    is_copy = row.get("filter", "none") != "none" and found.get(task, {}).get(sample.id) == request
    return None if is_copy else request


def _own(row: dict[str, Any], where: str, task: str) -> TaskRequest:
    """An item in llmopt's own form."""
    if unknown := sorted(row.keys() - _FIELDS):
        _refuse(where, f"unknown field {unknown[0]!r} (known: {', '.join(sorted(_FIELDS))})")
    number = row.get("id")
    item_id = _text(str(number) if type(number) is int else number, "'id'", where)
    name = _text(row.get("task", task), "'task'", where)
    context = row.get("context")
    if not isinstance(context, str):
        _refuse(where, "'context' must be a text")
    if ("target" in row) == ("choices" in row):
        _refuse(where, "an item has either 'choices' and 'gold' or 'target'")
    if "target" in row:
        if "gold" in row:
            _refuse(where, "'gold' belongs to 'choices', and this item has a 'target'")
        return TaskRequest(item_id, name, context, (_text(row["target"], "'target'", where),), None)
    choices, gold = row["choices"], row.get("gold")
    if not isinstance(choices, list) or len(choices) < 2:
        _refuse(where, "'choices' must be a list of at least 2 texts")
    texts = tuple(_text(choice, "every choice", where) for choice in choices)
    if type(gold) is not int or not 0 <= gold < len(choices):
        _refuse(where, f"'gold' is {gold!r} and must count from 0 to {len(choices) - 1}")
    return TaskRequest(item_id, name, context, texts, gold)


def _text(value: object, what: str, where: str) -> str:
    if not isinstance(value, str) or not value:
        _refuse(where, f"{what} must be a text that is not empty")
    return value


def _refuse(where: str, what: str) -> NoReturn:
    raise UsageError(
        f"{where}: {what}",
        'An item is {"id", "context", "choices", "gold"} or {"id", "context", "target"}, or a'
        " line that lm-evaluation-harness logged.",
    )
