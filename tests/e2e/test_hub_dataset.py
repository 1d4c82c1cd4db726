"""Hub datasets through the real library, on a dataset that lies in a local directory."""

import json
from pathlib import Path

import pytest

from llmopt.errors import UsageError
from llmopt.quantize.calibration_source import open_corpus

pytest.importorskip("datasets", reason="hub datasets are an optional part")
pytestmark = pytest.mark.filterwarnings("ignore")  # the library and its dependencies warn


@pytest.fixture
def dataset(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """`owner/name` with a train and a test split, found because the library looks here first."""
    folder = tmp_path / "owner" / "name"
    folder.mkdir(parents=True)
    for split in ("train", "test"):
        rows = [{"body": f"{split} {i}", "turns": [turn(f"{i}?")]} for i in range(3)]
        lines = "\n".join(json.dumps(row) for row in rows)
        (folder / f"{split}.jsonl").write_text(lines, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "cache"))
    return "owner/name"


def turn(content: str) -> dict[str, str]:
    return {"role": "user", "content": content}


def test_rows_are_streamed(dataset: str) -> None:
    corpus = open_corpus(f"hub:{dataset}:::body")
    assert corpus.streamed
    assert [document.text for document in corpus.documents] == ["train 0", "train 1", "train 2"]
    tests = open_corpus(f"hub:{dataset}::test:turns").documents
    assert [document.messages for document in tests] == [(turn(f"{i}?"),) for i in range(3)]


def test_absent_splits_and_scripts_are_refused(dataset: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="owner/name cannot be read"):
        list(open_corpus(f"hub:{dataset}::absent:body").documents)
    script = tmp_path / "owner" / "script"
    script.mkdir()
    (script / "script.py").write_text("raise SystemExit('this must never run')")
    with pytest.raises(UsageError, match="owner/script cannot be read"):
        list(open_corpus("hub:owner/script").documents)
