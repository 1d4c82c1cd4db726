"""The mock server, one process for all tests of this folder."""

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "support"))

from mock_server import MockProcess


@pytest.fixture(scope="session")
def mock() -> Iterator[Any]:
    with MockProcess() as process:
        yield process
