import asyncio
import json
from typing import Any

import pytest

from llmopt.backends import http_connections
from llmopt.backends.http_connections import HttpConnections
from llmopt.errors import UsageError


def ask(model: str) -> bytes:
    return json.dumps({"model": model, "prompt": [1], "max_tokens": 4, "stream": True}).encode()


async def read(connections: HttpConnections, model: str) -> tuple[int, bytes]:
    content = b""
    async with connections.post("/v1/completions", {}, ask(model)) as answer:
        while piece := await answer.body.read():
            content += piece
    return answer.head.status, content


def test_an_answer_that_was_left_unread_is_not_the_next_ones(mock: Any) -> None:
    model = mock.add("unread", ttft_s=0.0, tpot_s=0.0)

    async def main() -> tuple[int, bytes]:
        connections = HttpConnections(mock.url)
        async with connections.post("/v1/completions", {}, ask(model)) as answer:
            assert answer.head.status == 200
            await asyncio.sleep(0.1)  # the rest has come and waits
        found = await read(connections, model)
        assert connections.num_opened == 2
        return found

    status, content = asyncio.run(main())
    assert (status, content.count(b" a")) == (200, 4)


def test_an_error_that_was_read_leaves_the_connection_good(mock: Any) -> None:
    model = mock.add("after an error", ttft_s=0.0, tpot_s=0.0)

    async def main() -> list[int]:
        connections = HttpConnections(mock.url)
        statuses = [(await read(connections, name))[0] for name in ("absent", model, "absent")]
        assert connections.num_opened == 1
        return statuses

    assert asyncio.run(main()) == [404, 200, 404]


@pytest.mark.parametrize("url", ["http://host:0", "http://host?x=1", "host", "http://[::1"])
def test_what_is_no_address(url: str) -> None:
    with pytest.raises(UsageError, match="address"):
        HttpConnections(url)


def test_a_connection_that_was_idle_for_long_is_not_used_again(
    mock: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = mock.add("idle", ttft_s=0.0, tpot_s=0.0)
    monkeypatch.setattr(http_connections, "MAX_IDLE_S", 0.2)

    async def main() -> list[int]:
        connections, opened = HttpConnections(mock.url), []
        for pause_s in (0.0, 0.0, 0.4):
            await asyncio.sleep(pause_s)
            await read(connections, model)
            opened.append(connections.num_opened)
        return opened

    assert asyncio.run(main()) == [1, 1, 2]


def test_a_server_that_keeps_no_connection_is_told_to_end_it(mock: Any) -> None:
    model = mock.add("not-kept", ttft_s=0.0, tpot_s=0.0, closes_after=True)

    async def main() -> int:
        connections = HttpConnections(mock.url, reuses=False)
        for _ in range(5):  # without a pause, in which the end could be seen
            assert (await read(connections, model))[0] == 200
        return connections.num_opened

    assert asyncio.run(main()) == 5
    assert {entry["headers"]["connection"] for entry in mock.log(model)} == {"close"}
