"""The readers of all dialects: however the bytes are cut, the events are the same."""

from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from replay_server import read_exchanges

from llmopt.backends.http_stream import OpenAIStream, StreamReader
from llmopt.backends.profiles.lmdeploy_stream import LMDeployStream
from llmopt.backends.profiles.ollama_stream import OllamaStream
from llmopt.backends.profiles.tgi_stream import TgiStream
from llmopt.backends.protocol import TokenEvent
from llmopt.errors import BackendError

FIXTURES = Path(__file__).parents[2] / "fixtures" / "servers"
READERS = {
    "llama-server": OpenAIStream,
    "ollama": OllamaStream,
    "tgi": TgiStream,
    "lmdeploy": LMDeployStream,
}
SITUATIONS = ["stream", "several_tokens"]


def read(reader: StreamReader, pieces: list[bytes]) -> list[TokenEvent]:
    events = [event for piece in pieces for event in reader.feed(piece)]
    reader.close()
    return events


@pytest.mark.parametrize("situation", SITUATIONS)
@pytest.mark.parametrize("server", READERS)
@given(data=st.data())
def test_the_cuts_make_no_difference(server, situation, data):
    exchange = read_exchanges(FIXTURES / server)[situation]
    content = exchange.body.encode()
    cuts = sorted(data.draw(st.sets(st.integers(1, len(content) - 1), max_size=20)))
    bounds = [0, *cuts, len(content)]
    pieces = [content[a:b] for a, b in pairwise(bounds)]
    assert read(READERS[server](), pieces) == read(READERS[server](), [content])


@pytest.mark.parametrize("server", READERS)
def test_an_event_comes_with_the_byte_that_completes_it(server):
    content = read_exchanges(FIXTURES / server)["stream"].body.encode()
    reader, arrived = READERS[server](), []
    for index in range(len(content)):
        arrived += [index for event in reader.feed(content[index : index + 1]) if event.num_tokens]
    end = b"\n" if server == "ollama" else b"\n\n"
    assert arrived
    assert all(content[: index + 1].endswith(end) for index in arrived)


@pytest.mark.parametrize("server", READERS)
@pytest.mark.parametrize(
    ("data", "reason"),
    [("{", "not JSON"), ("[1]", "not an object"), ('{"error": "it fell over"}', "it fell over")],
)
def test_what_is_no_event_is_an_error(server, data, reason):
    content = f"{data}\n" if server == "ollama" else f"data: {data}\n\n"
    with pytest.raises(BackendError, match=reason):
        read(READERS[server](), [content.encode()])


@pytest.mark.parametrize("server", READERS)
def test_nothing_at_all_is_an_error(server):
    with pytest.raises(BackendError, match="without a finish reason"):
        read(READERS[server](), [])


@pytest.mark.parametrize("server", READERS)
def test_events_before_a_fault_are_handed_on(server):
    pieces = [piece.encode() for piece in read_exchanges(FIXTURES / server)["stream"].pieces]
    events = READERS[server]().feed(pieces[0] + pieces[1] + pieces[0][:9] + b"\n\n")
    assert next(events).num_tokens + next(events).num_tokens == 2
    with pytest.raises(BackendError):
        next(events)


def test_reasoning_is_told_from_the_answer():
    thinking = read_exchanges(FIXTURES / "ollama")["thinking"].body.encode()
    events = read(OllamaStream(), [thinking])
    assert [event.is_reasoning for event in events if event.num_tokens] == [True, False]
    chat = read_exchanges(FIXTURES / "openvino")["chat"].body.encode()
    events = read(OpenAIStream(), [chat])
    assert [event.is_reasoning for event in events if event.num_tokens] == [True, False]


def test_ollamas_times_are_in_seconds():
    (*_, last) = read(OllamaStream(), [read_exchanges(FIXTURES / "ollama")["stream"].body.encode()])
    assert last.server_timings_s == {
        "total_s": 0.174560334,
        "load_s": 0.101397084,
        "prompt_s": 0.013074791,
        "predicted_s": 0.052479709,
    }
