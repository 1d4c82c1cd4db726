"""Where calibration text comes from: a file, a hub dataset or the bundled text, as documents.

Knows nothing of tokens or models. Law: a source gives the same documents in the same order every
time, and no code that comes with a dataset is ever run.
"""

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

from llmopt.data import TextName, read_text
from llmopt.errors import MissingDependencyError, UsageError

BUNDLED_TEXT: TextName = "calibration"
BUNDLED = "bundled"
SELF = "self"
HUB_PREFIX = "hub:"
_FIELDS = ("text", "messages", "prompt", "content")  # tried in this order where none is named
_SUFFIXES = (".jsonl", ".ndjson")
_MIN_DATASETS = 4  # the first major version that cannot run a dataset's own script


@dataclass(frozen=True, slots=True)
class Document:
    """One text to learn from.

    text: the plain reading, or None for messages that only a chat template can render
    messages: {"role": ..., "content": ...} each, or None for plain text
    """

    text: str | None
    messages: tuple[Mapping[str, str], ...] | None = None


@dataclass(frozen=True, slots=True)
class Corpus:
    """Documents and the name they are recorded under.

    streamed: the documents come over the network one by one, perhaps without end, so that only as
        many are read as are needed
    """

    name: str
    documents: Iterable[Document]
    streamed: bool = False


def open_corpus(source: str) -> Corpus:
    """Open what a source says: `bundled`, `hub:owner/name[:config][:split][:field]`,
    `file.jsonl[:field]` or a text file. `self` is not opened here: its text is sampled from the
    model by the caller.

    JSON lines hold {"text": ...}, {"messages": [...]}, {"prompt": ..., "completion": ...} or, under
    a named field, a text or a list of messages. Raises `UsageError` for a source that does not
    exist or cannot be understood (for streamed ones while they are read), and
    `MissingDependencyError` where `datasets` is not installed.
    """
    if source == BUNDLED:
        return Corpus(f"{BUNDLED}:{BUNDLED_TEXT}", [Document(read_text(BUNDLED_TEXT))])
    if source == SELF:
        raise UsageError(
            "text sampled from the model itself is not a file",
            "Sample it first, and pack the tokens.",
        )
    if source.startswith(HUB_PREFIX):
        return _hub_corpus(source)
    path, field = _split_field(source)
    if path.suffix.lower() in _SUFFIXES:
        return _json_lines(path, field)
    return text_corpus(path)


def text_corpus(path: Path) -> Corpus:
    """A text file as one document. Raises `UsageError` unless it can be read as UTF-8, with or
    without a byte order mark.
    """
    return Corpus(path.name, [Document(_read(path, "Give a plain text file in UTF-8."))])


def document_of(row: Mapping[str, Any], field: str | None, where: str) -> Document:
    """The document in one row of a dataset; `where` names the row in errors (`UsageError`)."""
    key = field if field is not None else next((name for name in _FIELDS if name in row), None)
    if key is None or key not in row:
        wanted = f"field {field!r}" if field is not None else "text, messages or prompt"
        raise UsageError(
            f"{where} has no {wanted}, only {', '.join(sorted(map(str, row))) or 'nothing'}",
            "Name the field that holds the text, as in data.jsonl:body.",
        )
    value = row[key]
    if isinstance(value, list):
        return Document(None, _messages(value, where))
    if not isinstance(value, str):
        raise UsageError(
            f"{where}: the field {key!r} is neither a text nor a list of messages",
            "Name the field that holds the text, as in data.jsonl:body.",
        )
    completion = row.get("completion")
    if key == "prompt" and isinstance(completion, str):
        turns = {"role": "user", "content": value}, {"role": "assistant", "content": completion}
        return Document(value + completion, turns)
    return Document(value)


def _messages(value: list[Any], where: str) -> tuple[Mapping[str, str], ...]:
    for message in value:
        keys = ("role", "content")
        if not isinstance(message, dict) or any(
            not isinstance(message.get(key), str) for key in keys
        ):
            raise UsageError(
                f"{where} has a message without a role and a content that are texts",
                'Give messages as [{"role": "user", "content": "..."}, ...].',
            )
    if not value:
        raise UsageError(f"{where} has an empty list of messages", "Remove the row.")
    return tuple({"role": message["role"], "content": message["content"]} for message in value)


def _split_field(source: str) -> tuple[Path, str | None]:
    """Split `file.jsonl:field`; a path that exists as it stands is taken as it stands."""
    head, separator, field = source.rpartition(":")
    named = separator and Path(head).suffix.lower() in _SUFFIXES and not Path(source).exists()
    return (Path(head), field or None) if named else (Path(source), None)


def _json_lines(path: Path, field: str | None) -> Corpus:
    text = _read(path, "Give JSON lines in UTF-8.")
    documents = []
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        where = f"line {number} of {path.name}"
        try:
            row = json.loads(line)
        except ValueError as error:
            raise UsageError(
                f"{where} is not JSON ({error})", "Give one JSON object per line."
            ) from error
        if not isinstance(row, dict):
            raise UsageError(f"{where} is not a JSON object", "Give one JSON object per line.")
        documents.append(document_of(row, field, where))
    if not documents:
        raise UsageError(f"{path.name} has no rows", "Give one JSON object per line.")
    return Corpus(path.name if field is None else f"{path.name}:{field}", documents)


def _hub_corpus(source: str) -> Corpus:
    name, *rest = source.removeprefix(HUB_PREFIX).split(":")
    if not all(name.split("/")) or name.count("/") != 1 or len(rest) > 3:
        raise UsageError(
            f"{source!r} names no dataset", "Write hub:owner/name[:config][:split][:field]."
        )
    config, split, field = (*rest, "", "", "")[:3]
    return Corpus(
        source,
        _HubDocuments(name, config or None, split or "train", field or None, _datasets()),
        streamed=True,
    )


@dataclass(frozen=True, slots=True)
class _HubDocuments:
    """The rows of a hub dataset, streamed from the start each time."""

    name: str
    config: str | None
    split: str
    field: str | None
    library: Any

    def __iter__(self) -> Iterator[Document]:
        try:
            rows = self.library.load_dataset(
                self.name, self.config, split=self.split, streaming=True
            )
            for number, row in enumerate(rows):
                yield document_of(row, self.field, f"row {number} of {self.name}")
        except UsageError:
            raise
        except Exception as error:  # the library passes on errors of many others
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise UsageError(
                f"the dataset {self.name} cannot be read ({reason})",
                "Check its name, config and split and the network, or give a file.",
            ) from error


def _datasets() -> Any:
    try:
        library = import_module("datasets")
    except ImportError as error:
        raise MissingDependencyError(
            "hub datasets need the package datasets, which is not installed",
            f"Run: pip install 'datasets>={_MIN_DATASETS}'.",
        ) from error
    if int(library.__version__.split(".")[0]) < _MIN_DATASETS:
        raise MissingDependencyError(
            f"datasets {library.__version__} can run code that comes with a dataset",
            f"Run: pip install 'datasets>={_MIN_DATASETS}'.",
        )
    return library


def _read(path: Path, remedy: str) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except (OSError, ValueError) as error:
        raise UsageError(f"the calibration text {path} cannot be read ({error})", remedy) from error
