"""Sources of calibration text: what each spelling opens, and what each mistake is told."""

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from llmopt.errors import MissingDependencyError, UsageError
from llmopt.quantize.calibration_source import Document, document_of, open_corpus

TURNS = [{"role": "user", "content": "2+2?"}, {"role": "assistant", "content": "4"}]


def write_lines(path: Path, *rows: object) -> Path:
    path.write_text("\n".join(json.dumps(row) for row in rows) + "\n", encoding="utf-8")
    return path


def test_text_file_is_one_document(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("one\n\ntwo", encoding="utf-8")
    corpus = open_corpus(str(tmp_path / "a.txt"))
    assert (corpus.name, list(corpus.documents)) == ("a.txt", [Document("one\n\ntwo")])


def test_bundled_text() -> None:
    corpus = open_corpus("bundled")
    (document,) = corpus.documents
    assert corpus.name == "bundled:calibration"
    assert document.text is not None
    assert len(document.text) > 100_000


def test_json_lines_of_every_kind(tmp_path: Path) -> None:
    path = write_lines(
        tmp_path / "data.jsonl",
        {"id": 1, "text": "plain, with a line separator \u2028 inside"},
        {"messages": TURNS},
        {"prompt": "2+2?", "completion": " 4"},
        {"prompt": "only a prompt"},
    )
    text, chat, completion, prompt = open_corpus(str(path)).documents
    assert text == Document("plain, with a line separator \u2028 inside")
    assert chat == Document(None, tuple(TURNS))
    assert completion.text == "2+2? 4"
    assert [m["role"] for m in completion.messages or ()] == ["user", "assistant"]
    assert prompt == Document("only a prompt")


def test_field_can_be_named(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "d.jsonl", {"text": "no", "body": "yes", "turns": TURNS})
    assert [d.text for d in open_corpus(f"{path}:body").documents] == ["yes"]
    assert open_corpus(f"{path}:body").name == "d.jsonl:body"
    assert [d.messages for d in open_corpus(f"{path}:turns").documents] == [tuple(TURNS)]
    with pytest.raises(UsageError, match=r"line 1 of d\.jsonl has no field 'x'"):
        open_corpus(f"{path}:x")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "line 1 of bad.jsonl is not JSON"),
        ("[1]", "line 1 of bad.jsonl is not a JSON object"),
        ('{"title": "x"}', "has no text, messages or prompt, only title"),
        ('{"text": 3}', "neither a text nor a list"),
        ('{"messages": []}', "an empty list of messages"),
        ('{"messages": [{"role": "user"}]}', "without a role and a content"),
        ('{"messages": ["hi"]}', "without a role and a content"),
        ("\n\n", "has no rows"),
    ],
)
def test_bad_lines_are_named(tmp_path: Path, line: str, message: str) -> None:
    (tmp_path / "bad.jsonl").write_text(line, encoding="utf-8")
    with pytest.raises(UsageError, match=message):
        open_corpus(str(tmp_path / "bad.jsonl"))


@pytest.mark.parametrize("name", ["absent.txt", "absent.jsonl", "absent.jsonl:text"])
def test_absent_files_are_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(UsageError, match="cannot be read"):
        open_corpus(str(tmp_path / name))


@pytest.mark.parametrize("source", ["hub:", "hub:name", "hub:a/b/c", "hub:a/", "hub:a/b:1:2:3:4"])
def test_malformed_hub_names_are_refused(source: str) -> None:
    with pytest.raises(UsageError, match="names no dataset"):
        open_corpus(source)


def test_self_is_not_a_file() -> None:
    with pytest.raises(UsageError, match="model itself"):
        open_corpus("self")


class FakeDatasets(SimpleNamespace):
    """Stands for the package: remembers what was asked, streams rows."""

    def __init__(self, rows: list[dict[str, object]], version: str = "5.2.0") -> None:
        super().__init__(rows=rows, __version__=version, calls=[])

    def load_dataset(self, *args: object, **kwargs: object) -> Iterator[dict[str, object]]:
        self.calls.append((args, kwargs))
        if not self.rows:
            raise FileNotFoundError("Dataset 'a/b' doesn't exist on the Hub\nlong trace")
        return iter(self.rows)


def test_hub_dataset_is_streamed(monkeypatch: pytest.MonkeyPatch) -> None:
    fake = FakeDatasets([{"body": "one"}, {"body": "two"}])
    monkeypatch.setitem(sys.modules, "datasets", fake)  # type: ignore[arg-type]
    corpus = open_corpus("hub:a/b:en::body")
    assert corpus.streamed
    assert fake.calls == []  # nothing is fetched before it is read
    assert [d.text for d in corpus.documents] == ["one", "two"]
    assert fake.calls == [(("a/b", "en"), {"split": "train", "streaming": True})]


def test_hub_failures_are_sentences(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", FakeDatasets([]))  # type: ignore[arg-type]
    with pytest.raises(UsageError, match=r"a/b cannot be read \(Dataset 'a/b' doesn't exist"):
        list(open_corpus("hub:a/b").documents)
    monkeypatch.setitem(sys.modules, "datasets", FakeDatasets([{"x": 1}]))  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="row 0 of a/b has no text, messages or prompt, only x"):
        list(open_corpus("hub:a/b").documents)


def test_datasets_that_is_absent_or_runs_scripts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(MissingDependencyError, match="pip install 'datasets>=4'"):
        open_corpus("hub:a/b")
    old = FakeDatasets([], version="3.6.0")
    monkeypatch.setitem(sys.modules, "datasets", old)  # type: ignore[arg-type]
    with pytest.raises(MissingDependencyError, match=r"datasets 3\.6\.0 can run code"):
        open_corpus("hub:a/b")


def test_named_field_wins_over_known_ones() -> None:
    row = {"text": "no", "prompt": "p", "completion": "c", "answer": "yes"}
    assert document_of(row, "answer", "row").text == "yes"
    assert document_of(row, None, "row").text == "no"
    assert document_of(row, "prompt", "row").text == "pc"


def test_a_byte_order_mark_is_no_text(tmp_path: Path) -> None:
    text, lines = tmp_path / "a.txt", tmp_path / "a.jsonl"
    text.write_text("Grüße", encoding="utf-8-sig")
    lines.write_text('{"text": "Grüße"}\n', encoding="utf-8-sig")
    for path in (text, lines):
        assert [document.text for document in open_corpus(str(path)).documents] == ["Grüße"]
