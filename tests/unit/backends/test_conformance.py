"""Every profile against what its server is known to answer: recorded, or from its documentation."""

import asyncio
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from replay_server import Exchange, read_exchanges

from llmopt.backends.http_backend import HttpBackend
from llmopt.backends.http_options import ServerOptions
from llmopt.backends.probe import NUM_TOKENS, probe
from llmopt.backends.profiles.registry import PROFILES
from llmopt.backends.protocol import GenerationParams, TokenEvent
from llmopt.errors import BackendError

FIXTURES = Path(__file__).parents[2] / "fixtures" / "servers"
KNOWN = {name: read_exchanges(FIXTURES / name) for name in PROFILES}
ALL = [exchange for exchanges in KNOWN.values() for exchange in exchanges.values()]
STREAMS = [e for e in ALL if isinstance(e.expected, dict) and "token_counts" in e.expected]
FAILURES = [e for e in ALL if isinstance(e.expected, dict) and "error" in e.expected]
PLAIN = ("models", "version", "context_length", "count_tokens", "metrics", "cache_reset")
PROMPT = [504, 3575, 282, 4649, 314]


def name_of(exchange: Exchange) -> str:
    return f"{exchange.server}-{exchange.situation}"


def plain_answers(server: str) -> list[Exchange]:
    return [KNOWN[server][situation] for situation in PLAIN if situation in KNOWN[server]]


def start(replay: Any, *exchanges: Exchange) -> HttpBackend:
    server = exchanges[0].server
    replay.play([*plain_answers(server), *exchanges])
    endpoint: Any = "chat" if "/chat/" in exchanges[0].path else "completions"
    model = KNOWN[server]["models"].expected[0]
    backend = HttpBackend(
        PROFILES[server], ServerOptions(replay.url, model, endpoint=endpoint), decode=decode
    )
    backend.start()
    replay.requests.clear()
    return backend


def decode(token_ids: Any) -> str:
    return "The capital of France is" if list(token_ids) == PROMPT else str(list(token_ids))


async def collect(backend: HttpBackend, events: list[TokenEvent]) -> None:
    async for event in backend.stream(PROMPT, GenerationParams(6)):
        events.append(event)


def answer(backend: HttpBackend) -> tuple[list[TokenEvent], str | None]:
    """The events, and the error that ended them."""
    events: list[TokenEvent] = []
    try:
        backend.drive(lambda: asyncio.run(collect(backend, events)))
    except BackendError as error:
        return events, str(error)
    return events, None


def last(values: Any) -> Any:
    known = [value for value in values if value is not None]
    return known[-1] if known else None


@pytest.mark.parametrize("exchange", STREAMS, ids=name_of)
def test_a_stream_is_understood(replay, exchange):
    events, error = answer(start(replay, exchange))
    assert error is None
    timings = {name: s for event in events for name, s in (event.server_timings_s or {}).items()}
    assert {
        "token_counts": [event.num_tokens for event in events if event.num_tokens],
        "finish_reason": last(event.finish_reason for event in events),
        "num_prompt_tokens": last(event.num_prompt_tokens for event in events),
        "text": "".join(event.text for event in events),
        "num_cached_tokens": last(event.num_cached_tokens for event in events),
        "total_tokens": last(event.total_tokens for event in events),
        "timings": sorted(timings),
        "is_guess": any(event.is_guess for event in events),
    } == exchange.expected
    assert sum(event.finish_reason is not None for event in events) == 1
    assert all(0 <= seconds < 60 for seconds in timings.values())


@pytest.mark.parametrize("exchange", FAILURES, ids=name_of)
def test_a_failure_is_told_in_the_servers_own_words(replay, exchange):
    events, error = answer(start(replay, exchange))
    assert error is not None
    assert exchange.expected["error"] in error
    assert sum(event.num_tokens for event in events) == exchange.expected.get("num_tokens", 0)


@pytest.mark.parametrize("server", PROFILES)
def test_what_is_asked_of_a_server(replay, server):
    """The prompt, the length, greedy choice, and the end of text ignored where that can be said."""
    backend = start(replay, KNOWN[server]["stream"])
    answer(backend)
    (method, path, body) = replay.requests[-1]
    assert (method, path) == ("POST", KNOWN[server]["stream"].path)
    values = dict(flat(body))
    text, profile = "The capital of France is", PROFILES[server]
    assert (PROMPT if profile.takes_token_ids else text) in values.values()
    assert 6 in [values.get(name) for name in ("max_tokens", "num_predict", "max_new_tokens")]
    assert values.get("temperature", values.get("do_sample")) == 0
    assert values.get("ignore_eos", False) == profile.ignores_eos
    assert ("cache_salt" in values) == profile.salts_cache
    assert backend.settings["prompt_as"] == ("token ids" if profile.takes_token_ids else "text")


def flat(body: dict[str, Any]) -> Any:
    for name, value in body.items():
        yield from flat(value) if isinstance(value, dict) else [(name, value)]


@pytest.mark.parametrize("server", [name for name, p in PROFILES.items() if p.salts_cache])
def test_every_start_and_every_reset_has_a_salt_of_its_own(replay, server):
    backend = start(replay, KNOWN[server]["stream"])
    answer(backend)
    answer(backend)
    assert backend.reset_cache() is None  # though the server cannot be emptied
    answer(backend)
    backend.stop()
    backend.start()
    answer(backend)
    salts = [body["cache_salt"] for _, _, body in replay.requests if body and "stream" in body]
    assert salts[0] == salts[1]
    assert len(set(salts)) == 3


@pytest.mark.parametrize("server", PROFILES)
def test_health(server):
    profile = PROFILES[server]
    for situation in ("loading", "ready"):
        exchange = KNOWN[server][situation]
        assert (exchange.method, exchange.path) == ("GET", profile.health)
        assert profile.is_ready(exchange.status, exchange.body) is exchange.expected


@pytest.mark.parametrize("server", PROFILES)
def test_what_a_server_says_of_itself(replay, server):
    known = KNOWN[server]
    backend = start(replay, known["stream"])
    assert backend.name == server
    assert backend.model == known["models"].expected[0]
    assert backend.version == (known["version"].expected if "version" in known else "unknown")
    length = known["context_length"].expected if "context_length" in known else None
    assert backend.context_length == length
    count = known["count_tokens"].expected if "count_tokens" in known else None
    assert backend.count_tokens("The capital of France is") == count


@pytest.mark.parametrize("server", [name for name in PROFILES if "metrics" in KNOWN[name]])
def test_metrics_are_what_has_happened_since_the_start(replay, server):
    exchange = KNOWN[server]["metrics"]
    assert PROFILES[server].metrics.path == exchange.path
    backend = start(replay, KNOWN[server]["stream"])
    grown = {n: 0.0 if n.startswith("num_") else v for n, v in exchange.expected.items()}
    assert backend.server_metrics() == grown
    backend.stop()
    replay.play([KNOWN[server]["models"]])
    backend.start()
    assert backend.server_metrics() == {}
    replay.play([exchange])
    assert backend.server_metrics() == exchange.expected
    assert exchange.expected != {}


@pytest.mark.parametrize("server", [n for n, p in PROFILES.items() if p.cache_reset is not None])
def test_the_cache_is_emptied_or_the_reason_is_given(replay, server):
    known = KNOWN[server]
    backend = start(replay, known["stream"])
    paths = [known["cache_reset"].path]
    if server == "llama-server":
        paths = [f"/slots/{slot}?action=erase" for slot in range(4)]
    resets = [replace(known["cache_reset"], path=path) for path in paths]
    replay.play([*plain_answers(server), *resets])
    assert backend.reset_cache() is None
    assert [path for method, path, _ in replay.requests if method == "POST"] == paths
    replay.play([*plain_answers(server), known["cache_busy"]])
    reason = backend.reset_cache()
    if PROFILES[server].salts_cache:
        assert reason is None
        return
    assert reason is not None
    assert reason.startswith(known["cache_busy"].expected)
    replay.play([])
    assert backend.reset_cache() is not None


def test_a_server_without_a_reset_says_so(replay):
    backend = start(replay, KNOWN["ollama"]["stream"])
    assert backend.reset_cache() == "the server has no call that empties its cache"


@pytest.mark.parametrize("server", PROFILES)
def test_the_probe(replay, server):
    exchange = KNOWN[server]["stream"]
    findings = probe(start(replay, exchange), PROMPT)
    expected = exchange.expected
    total = expected["total_tokens"] or sum(expected["token_counts"])
    assert findings.num_prompt_tokens_sent == len(PROMPT)
    assert findings.num_prompt_tokens_counted == expected["num_prompt_tokens"]
    assert findings.num_output_tokens == (total, total)
    assert findings.gives_all_tokens is (total == NUM_TOKENS)
    assert findings.finish_reasons == ("length", "length")
    assert findings.counts_events is not expected["is_guess"]
    assert findings.counts_tokens
    assert findings.tokens_per_event == total / len(expected["token_counts"])
    assert findings.is_repeatable
    assert findings.num_cached_tokens == expected["num_cached_tokens"]
    assert list(findings.server_timings) == expected["timings"]


@pytest.mark.parametrize("server", PROFILES)
def test_the_fixtures_are_complete_and_say_where_they_are_from(server):
    known, profile = KNOWN[server], PROFILES[server]
    needed = {"stream", "several_tokens", "too_long", "overloaded", "internal", "broken_off"}
    needed |= {"loading", "ready", "models"}
    needed |= {"version"} if profile.version and "openai" not in server else set()  # vLLM's
    needed |= {"metrics"} if profile.metrics else set()
    needed |= {"context_length"} if profile.context_length else set()
    needed |= {"count_tokens"} if profile.count_tokens else set()
    needed |= {"cache_reset", "cache_busy"} if profile.cache_reset else set()
    assert needed - known.keys() == set()
    assert {"chat", "empty_first"} & known.keys()
    for exchange in known.values():
        sources = exchange.source
        assert sources
        assert all(s.startswith(("https://", "recorded from ")) for s in sources), sources
    assert all(page.startswith("https://") for page in profile.documentation)


def test_no_fixture_belongs_to_nobody():
    assert {path.name for path in FIXTURES.iterdir()} == set(PROFILES)
