"""WikiText-2 is fetched once, kept, and never another text under its name."""

import hashlib
import zipfile
from pathlib import Path
from typing import Any

import pytest

from llmopt.data import wikitext_file
from llmopt.data.wikitext_file import read_wikitext2, wikitext2_path
from llmopt.errors import OutputError, UsageError

CONTENT = b" \n = Du Fu = \n \n A poet . \n"


class FakeHub:
    """Writes the archive where the hub client would; counts how often."""

    def __init__(self, content: bytes) -> None:
        self.content = content
        self.asked: list[tuple[str, str, str]] = []

    def __call__(self, repo_id: str, filename: str, *, repo_type: str, local_dir: str) -> str:
        self.asked.append((repo_id, filename, repo_type))
        path = Path(local_dir) / filename
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("wikitext-2-raw/wiki.test.raw", self.content)
            archive.writestr("wikitext-2-raw/wiki.train.raw", b"other")
        return str(path)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("LLMOPT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(wikitext_file, "SHA256", hashlib.sha256(CONTENT).hexdigest())
    return tmp_path / "cache"


def hub(monkeypatch: pytest.MonkeyPatch, answer: Any) -> None:
    monkeypatch.setattr("huggingface_hub.hf_hub_download", answer)


def test_it_is_fetched_once_and_kept(monkeypatch: pytest.MonkeyPatch, cache: Path) -> None:
    fake = FakeHub(CONTENT)
    hub(monkeypatch, fake)
    assert read_wikitext2() == CONTENT
    assert read_wikitext2() == CONTENT
    assert fake.asked == [("ggml-org/ci", "wikitext-2-raw-v1.zip", "dataset")]
    assert wikitext2_path().read_bytes() == CONTENT
    assert wikitext2_path().is_relative_to(cache)
    assert [file.name for file in wikitext2_path().parent.iterdir()] == ["wiki.test.raw"]


def test_one_put_there_by_hand_needs_no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    hub(monkeypatch, None)
    wikitext2_path().parent.mkdir(parents=True)
    wikitext2_path().write_bytes(CONTENT)
    assert read_wikitext2() == CONTENT


def test_another_text_put_there_is_refused() -> None:
    wikitext2_path().parent.mkdir(parents=True)
    wikitext2_path().write_bytes(CONTENT.replace(b"\n", b"\r\n"))
    with pytest.raises(UsageError, match="is not the raw test split of WikiText-2") as caught:
        read_wikitext2()
    assert str(wikitext2_path()) in caught.value.remedy


def test_another_text_from_the_hub_is_refused_and_not_kept(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    hub(monkeypatch, FakeHub(CONTENT + b"x"))
    with pytest.raises(UsageError, match=r"wikitext-2-raw-v1\.zip is not the raw test split"):
        read_wikitext2()
    assert not wikitext2_path().exists()


def test_without_network_it_says_where_to_put_the_file(monkeypatch: pytest.MonkeyPatch) -> None:
    def unreachable(*_: object, **__: object) -> str:
        raise ConnectionError("no route\nto host")

    hub(monkeypatch, unreachable)
    with pytest.raises(UsageError, match=r"cannot be fetched from the hub \(no route\)") as caught:
        read_wikitext2()
    assert f"put wiki.test.raw of wikitext-2-raw-v1 at {wikitext2_path()}" in caught.value.remedy


def test_a_cache_that_cannot_be_written_is_told(
    monkeypatch: pytest.MonkeyPatch, cache: Path
) -> None:
    hub(monkeypatch, FakeHub(CONTENT))
    cache.write_text("a file where the directory should be")
    with pytest.raises(OutputError, match="WikiText-2 cannot be kept") as caught:
        read_wikitext2()
    assert "LLMOPT_CACHE" in caught.value.remedy
