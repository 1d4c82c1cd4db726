"""The mock server, one process for all tests of this folder, and a server that replays fixtures."""

from collections.abc import Iterator
from typing import Any

import pytest
from mock_server import MockProcess
from replay_server import ReplayServer


@pytest.fixture(scope="session")
def mock() -> Iterator[Any]:
    with MockProcess() as process:
        yield process


@pytest.fixture(scope="session")
def replay() -> Iterator[Any]:
    with ReplayServer() as server:
        yield server
