"""The real servers, each asked what its profile says, and held to what its fixtures say.

A server runs where LLMOPT_SERVER_NAME names its program (LLMOPT_SERVER_VLLM=/env/bin/vllm), or the
address of one that serves the default model (LLMOPT_SERVER_OLLAMA=http://127.0.0.1:11434). More
arguments of a program: LLMOPT_SERVER_NAME_ARGS.
"""

import asyncio
import os
import shlex
from collections.abc import Callable, Iterator, Sequence
from contextlib import aclosing
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch

from llmopt.backends.http_backend import HttpBackend
from llmopt.backends.http_options import ServerOptions
from llmopt.backends.managed_server import HOST, ManagedServer, free_port
from llmopt.backends.probe import NUM_TOKENS, probe
from llmopt.backends.profiles.launch import LaunchRequest
from llmopt.backends.profiles.profile import ServerProfile
from llmopt.backends.profiles.registry import PROFILES
from llmopt.backends.protocol import GenerationParams, TokenEvent
from llmopt.errors import BackendError
from llmopt.formats.checkpoint import CheckpointReader
from llmopt.formats.gguf_blocks import ggml_type
from llmopt.models.gguf_export import export_gguf
from llmopt.models.tokenizer import Tokenizer, load_tokenizer
from llmopt.quantize.gguf_encode import encode

pytestmark = [pytest.mark.servers, pytest.mark.real_model, pytest.mark.timeout(1200)]
CONTEXT_LENGTH, NUM_PARALLEL = 256, 4
TEXT = "The capital of France is"
PROBE_TEXT = "Rivers of the world, from the longest to the shortest:"
LONG_TEXT = "one two three four five six seven eight nine ten " * 40
READS_GGUF = ("llama-server",)
Q8_0_FILE = 7  # general.file_type


def variable(name: str) -> str:
    return "LLMOPT_SERVER_" + name.upper().replace("-", "_")


NAMED = [name for name in PROFILES if os.environ.get(variable(name))]
if not NAMED:
    pytest.skip("no LLMOPT_SERVER_* names a server", allow_module_level=True)


@pytest.fixture(scope="module", params=NAMED)
def profile(request: pytest.FixtureRequest) -> ServerProfile:
    return PROFILES[request.param]


@pytest.fixture(scope="module")
def tokenizer(default_model: Path) -> Tokenizer:
    return load_tokenizer(default_model)


@pytest.fixture(scope="module")
def gguf_file(default_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("gguf") / "model.gguf"
    export_gguf(
        CheckpointReader(default_model),
        load_tokenizer(default_model),
        out,
        name="default",
        file_type=Q8_0_FILE,
        choose=lambda tensor: ggml_type("q8_0"),
        encode=lambda name, weight, kind: encode(weight.float(), kind.name, name=name),
    )
    return out


@pytest.fixture(scope="module")
def url(
    profile: ServerProfile,
    default_model: Path,
    request: pytest.FixtureRequest,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[str]:
    program = os.environ[variable(profile.name)]
    if program.startswith(("http://", "https://")):
        yield program
        return
    assert profile.launch is not None, f"{profile.name} is attached to: name its address"
    is_gguf = profile.name in READS_GGUF
    port = free_port()
    address = f"http://{HOST}:{port}"
    command = profile.launch(
        LaunchRequest(
            program=program,
            checkpoint=request.getfixturevalue("gguf_file") if is_gguf else default_model,
            quantization="gguf" if is_gguf else None,
            model_name="m",
            port=port,
            context_length=CONTEXT_LENGTH,
            num_parallel=NUM_PARALLEL,
            dtype="bfloat16",
            device="cuda" if torch.cuda.is_available() else "cpu",
            num_threads=min(os.cpu_count() or 1, 8),
            extra_args=tuple(shlex.split(os.environ.get(f"{variable(profile.name)}_ARGS", ""))),
        )
    )
    server = ManagedServer(
        profile.name,
        command,
        port=port,
        is_ready=lambda: is_ready(profile, address),
        variables=dict(os.environ),
        log=tmp_path_factory.mktemp("log") / f"{profile.name}.log",
        timeout_s=900.0,
    )
    server.start()
    yield address
    server.stop()


def is_ready(profile: ServerProfile, address: str) -> bool:
    answer = httpx.get(address + profile.health, timeout=5.0, trust_env=False)
    return profile.is_ready(answer.status_code, answer.text)


@pytest.fixture
def backend(profile: ServerProfile, url: str, tokenizer: Tokenizer) -> Iterator[HttpBackend]:
    server = HttpBackend(profile, ServerOptions(url), decode=decoder(tokenizer))
    server.start()
    yield server
    server.stop()


def decoder(tokenizer: Tokenizer) -> Callable[[Sequence[int]], str]:
    return lambda token_ids: tokenizer.decode(list(token_ids))


def ask(backend: HttpBackend, prompt: Any, max_tokens: int) -> list[TokenEvent]:
    async def main() -> list[TokenEvent]:
        params = GenerationParams(max_tokens, seed=1)
        return [event async for event in backend.stream(prompt, params)]

    return backend.drive(lambda: asyncio.run(main()))


def total(events: Sequence[TokenEvent]) -> int:
    counts = [event.total_tokens for event in events if event.total_tokens is not None]
    return counts[-1] if counts else sum(event.num_tokens for event in events)


def test_what_it_says_of_itself(backend: HttpBackend, profile: ServerProfile) -> None:
    if profile.version is not None and "openai" not in profile.name:
        assert backend.version != "unknown"
    if profile.context_length is not None:
        assert backend.context_length is not None
    assert backend.model


def test_the_probe(backend: HttpBackend, profile: ServerProfile, tokenizer: Tokenizer) -> None:
    prompt = tokenizer.encode(PROBE_TEXT)
    findings = probe(backend, prompt)
    assert findings.num_prompt_tokens_counted == len(prompt)
    assert findings.is_repeatable
    assert findings.counts_tokens
    if profile.ignores_eos:
        assert findings.gives_all_tokens
        assert findings.num_output_tokens == (NUM_TOKENS, NUM_TOKENS)


def test_greedy_text(backend: HttpBackend, tokenizer: Tokenizer) -> None:
    events = ask(backend, tokenizer.encode(TEXT), 6)
    assert "".join(event.text for event in events).startswith(" Paris")
    assert [event.finish_reason for event in events if event.finish_reason] == ["length"]


def test_many_at_once(backend: HttpBackend, profile: ServerProfile, tokenizer: Tokenizer) -> None:
    prompts = [tokenizer.encode(f"{number}: {TEXT}") for number in range(2 * NUM_PARALLEL)]

    async def collect(prompt: Sequence[int], max_tokens: int) -> list[TokenEvent]:
        params = GenerationParams(max_tokens)
        return [event async for event in backend.stream(prompt, params)]

    async def main() -> list[list[TokenEvent]]:
        return await asyncio.gather(*(collect(p, 5 + i) for i, p in enumerate(prompts)))

    answers = backend.drive(lambda: asyncio.run(main()))
    if profile.ignores_eos:
        assert [total(events) for events in answers] == [5 + i for i in range(len(prompts))]
    assert backend.stats()["num_connections"] == len(prompts)


def test_a_prompt_that_is_too_long(backend: HttpBackend, tokenizer: Tokenizer) -> None:
    """Refused, or cut in silence, which the count of the prompt shows."""
    prompt = tokenizer.encode(LONG_TEXT)
    assert len(prompt) > CONTEXT_LENGTH
    outcome = attempt(backend, prompt)
    if isinstance(outcome, BackendError):
        assert str(len(prompt)) in str(outcome) or "context" in str(outcome)
    else:
        counted = [e.num_prompt_tokens for e in outcome if e.num_prompt_tokens is not None]
        assert counted[-1] < len(prompt)


def attempt(backend: HttpBackend, prompt: Sequence[int]) -> list[TokenEvent] | BackendError:
    try:
        return ask(backend, prompt, 5)
    except BackendError as error:
        return error


def test_closing_the_stream_ends_the_request(backend: HttpBackend, tokenizer: Tokenizer) -> None:
    async def main() -> list[TokenEvent]:
        params = GenerationParams(200)
        async with aclosing(backend.stream(tokenizer.encode(TEXT), params)) as events:
            await anext(events)
        prompt = tokenizer.encode(f"After all, {TEXT}")
        return [event async for event in backend.stream(prompt, GenerationParams(3))]

    assert total(backend.drive(lambda: asyncio.run(main()))) <= 3


def test_metrics_count_what_was_done(
    backend: HttpBackend, profile: ServerProfile, tokenizer: Tokenizer
) -> None:
    if profile.metrics is None:
        pytest.skip(f"{profile.name} has no metrics")
    prompt = tokenizer.encode(f"Of all the cities of Europe, {TEXT}")
    answered = total(ask(backend, prompt, 6))
    metrics = backend.server_metrics()
    if "num_output_tokens" in profile.metrics.names.values():
        assert metrics["num_output_tokens"] == answered
        assert metrics["num_prompt_tokens"] == len(prompt)
    assert metrics


def test_the_cache_is_emptied_between_runs(
    backend: HttpBackend, profile: ServerProfile, tokenizer: Tokenizer
) -> None:
    """By the reset, or by a salt of its own, where the server has either."""
    prompt = tokenizer.encode("Mountains, " * 40)
    for _ in range(2):
        ask(backend, prompt, 3)
    reason = backend.reset_cache()
    if reason is None:
        cached = [event.num_cached_tokens for event in ask(backend, prompt, 3)]
        assert [count for count in cached if count] == []
    else:
        assert profile.name in ("llama-server", "ollama", "tgi", "trtllm", "lmdeploy", "openvino")
