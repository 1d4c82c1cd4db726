"""The mock server, one process for all tests of this folder."""

from collections.abc import Iterator
from typing import Any

import pytest
from mock_server import MockProcess


@pytest.fixture(scope="session")
def mock() -> Iterator[Any]:
    with MockProcess() as process:
        yield process
