"""A backend of any kind but our own, from what is to be served: started here, or attached to.

Knows where programs are and how each kind is started; knows nothing of loads or results. The law:
what is asked of one runtime (context, parallel requests, dtype, threads) is asked of all.
"""

from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import httpx

from llmopt.backends.catalogue import BackendKind, find_backend
from llmopt.backends.formats import CheckpointFacts
from llmopt.backends.http_backend import HttpBackend
from llmopt.backends.http_options import ServerOptions, read_api_key
from llmopt.backends.managed_server import HOST, ManagedServer, OnWait, free_port, log_tail
from llmopt.backends.profiles.launch import LaunchRequest
from llmopt.backends.profiles.profile import ServerProfile
from llmopt.backends.profiles.registry import find_profile
from llmopt.backends.protocol import GenerationParams, T, TokenEvent
from llmopt.backends.server_command import (
    Program,
    server_program,
    shown_command,
    shown_line,
    worker_python,
)
from llmopt.backends.worker_backend import WorkerBackend
from llmopt.backends.worker_options import WORKER_KINDS, WorkerOptions
from llmopt.errors import BackendError, UsageError
from llmopt.hardware.processors import usable_processors
from llmopt.recipe.backends import BackendSpec
from llmopt.results.schema import BackendFacts

_HEALTH_TIMEOUT_S = 5.0
_VISIBLE = "CUDA_VISIBLE_DEVICES"
_LEAST_KV_CACHE_BYTES = 1 << 28


@dataclass(frozen=True, slots=True, kw_only=True)
class BackendRequest:
    """One model to serve, and how.

    checkpoint: a directory of safetensors or a GGUF file; facts: what is known of it
    tokenizer: a directory with config and tokenizer, where the checkpoint is a GGUF file
    decode: text of token ids, for servers that take no ids
    device: "cpu", "cuda", or "cuda:N", which is then all that it sees
    log: where the output of what is started goes
    """

    spec: BackendSpec
    checkpoint: Path
    facts: CheckpointFacts
    model_name: str
    dtype: str
    device: str
    context_length: int
    num_parallel: int
    num_threads: int
    log: Path
    tokenizer: Path | None = None
    decode: Callable[[Sequence[int]], str] | None = None

    @property
    def kind(self) -> BackendKind:
        """The entry of the catalogue. Raises UsageError."""
        return find_backend(self.spec.name)

    @property
    def device_type(self) -> str:
        """ "cpu" or "cuda"."""
        return self.device.partition(":")[0]


class ForeignBackend:
    """A runtime of others: an HTTP server that is attached to or started here, or a worker."""

    def __init__(
        self,
        inner: HttpBackend | WorkerBackend,
        *,
        name: str,
        log: Path,
        server: ManagedServer | None = None,
        command: str | None = None,
        package: str | None = None,
        on_wait: OnWait | None = None,
    ) -> None:
        self._inner = inner
        self._name = name
        self._log = log
        self._server = server
        self._command = command
        self._package = package
        self._on_wait = on_wait

    @property
    def name(self) -> str:
        """As recipes call it."""
        return self._name

    @property
    def version(self) -> str:
        """Version of the runtime, or of the package it came in where it was built without its own;
        known after `start`.
        """
        found = self._inner.version
        return self._package if self._package and "unknown" in found else found

    @property
    def settings(self) -> dict[str, object]:
        """What it serves with."""
        return self._inner.settings

    @property
    def is_managed(self) -> bool:
        """Whether it is started and ended here."""
        return self._command is not None

    def start(self) -> None:
        """Start it, where it is managed, and get ready. Raises BackendError or UsageError."""
        if self._server is not None:
            self._server.start(self._on_wait)
        try:
            self._inner.start()
        except BaseException as error:
            self.stop()
            if self._server is not None and isinstance(error, BackendError):
                raise self._explained(error) from None
            raise

    def drive(self, client: Callable[[], T]) -> T:
        """Run the client here; the runtime computes elsewhere."""
        return self._inner.drive(client)

    def stop(self) -> None:
        """Let go of it, and end it where it was started here; a second call does nothing."""
        try:
            self._inner.stop()
        finally:
            if self._server is not None:
                self._server.stop()

    def stream(
        self, prompt_token_ids: Sequence[int], params: GenerationParams, /
    ) -> AsyncGenerator[TokenEvent, None]:
        """Serve one request."""
        return self._inner.stream(prompt_token_ids, params)

    def stats(self) -> dict[str, float]:
        """Its counters since `start`. Raises BackendError when it has ended."""
        self.check()
        return self._inner.stats()

    def reset_cache(self) -> str | None:
        """Empty what is kept of earlier prompts. Returns why it may not be empty, else None.

        A worker keeps nothing: it is started without a prefix cache.
        """
        return None if isinstance(self._inner, WorkerBackend) else self._inner.reset_cache()

    def server_metrics(self) -> dict[str, float]:
        """What a server says of itself now; empty where it says nothing."""
        return {} if isinstance(self._inner, WorkerBackend) else self._inner.server_metrics()

    def check(self, patience_s: float = 0.0) -> None:
        """Raise BackendError when a server that was started here has ended, or does so soon."""
        if self._server is not None:
            self._server.check(patience_s)

    def failure(self, what: str) -> BackendError:
        """The error that says what it did, and how its log ends where it was started here."""
        if self._server is not None:
            return self._server.failure(what)
        return BackendError(f"{self._name} {what}", "See its own log.")

    def facts(self) -> BackendFacts:
        """What a result says of it; known after `start`."""
        return BackendFacts(
            self._name,
            self.version,
            self.settings,
            command=self._command,
            log=f"{self._log.parent.name}/{self._log.name}" if self.is_managed else None,
        )

    def log_tail(self) -> str | None:
        """How the log of what was started here ends."""
        return (log_tail(self._log) or None) if self.is_managed else None

    def _explained(self, error: BackendError) -> BackendError:
        return BackendError(f"{error.message}; its log ends: {log_tail(self._log)}", error.remedy)


def check_available(spec: BackendSpec, facts: CheckpointFacts) -> None:
    """See that a backend can be started or attached to, without doing so.

    Raises UsageError for a name or a key that is none, BackendError for what is not installed.
    """
    kind = find_backend(spec.name)
    if spec.url is not None:
        require_attachable(kind)
        _api_key(spec)
    elif kind.how == "server":
        server_program(kind)
    elif kind.how == "worker":
        worker_python(kind, facts)


def open_backend(request: BackendRequest, on_wait: OnWait | None = None) -> ForeignBackend:
    """The backend, not started yet. Raises as `check_available`."""
    kind = request.kind
    assert kind.how != "in-process", "llmopt's own runtime needs a loaded model"
    if request.spec.url is not None:
        return _attached(request, request.spec.url)
    if kind.how == "worker":
        return _worker(request)
    return _managed(request, on_wait)


def _attached(request: BackendRequest, url: str) -> ForeignBackend:
    require_attachable(request.kind)
    spec = request.spec
    options = ServerOptions(url, spec.model, api_key=_api_key(spec))
    inner = HttpBackend(find_profile(spec.name), options, request.decode)
    return ForeignBackend(inner, name=spec.name, log=request.log)


def _worker(request: BackendRequest) -> ForeignBackend:
    program = worker_python(request.kind, request.facts)
    options = WorkerOptions(
        WORKER_KINDS[request.kind.name],
        Path(program.path),
        request.checkpoint,
        request.log,
        num_threads=request.num_threads,
        max_model_len=request.context_length,
        max_num_seqs=request.num_parallel,
        dtype=request.dtype,
        device=request.device_type,
        variables=_variables(program, request.device),
        start_timeout_s=request.spec.start_timeout_s or request.kind.start_timeout_s,
    )
    request.log.parent.mkdir(parents=True, exist_ok=True)
    inner = WorkerBackend(options)
    command = shown_line(inner.command)
    return ForeignBackend(inner, name=request.kind.name, log=request.log, command=command)


def _managed(request: BackendRequest, on_wait: OnWait | None) -> ForeignBackend:
    kind, spec = request.kind, request.spec
    program = server_program(kind)
    profile = find_profile(kind.name)
    assert profile.launch is not None, "a server that has a program can be launched"
    port, on_cpu = free_port(), request.device_type == "cpu"
    command = profile.launch(
        LaunchRequest(
            program=program.path,
            checkpoint=request.checkpoint,
            quantization=request.facts.quantization,
            model_name=request.model_name,
            port=port,
            context_length=request.context_length,
            num_parallel=request.num_parallel,
            dtype=request.dtype,
            device=request.device_type,
            num_threads=request.num_threads if on_cpu else None,
            processors=usable_processors()[: request.num_threads] if on_cpu else (),
            kv_cache_bytes=_kv_cache_bytes(request),
            tokenizer=request.tokenizer,
            extra_args=spec.server_args,
        )
    )
    url = f"http://{HOST}:{port}"
    server = ManagedServer(
        kind.name,
        command,
        port=port,
        is_ready=lambda: _is_ready(profile, url),
        variables=_variables(program, request.device),
        log=request.log,
        timeout_s=spec.start_timeout_s or kind.start_timeout_s,
    )
    inner = HttpBackend(profile, ServerOptions(url), request.decode)  # its only model
    return ForeignBackend(
        inner,
        name=kind.name,
        log=request.log,
        server=server,
        command=shown_command(command, request.checkpoint),
        package=program.package,
        on_wait=on_wait,
    )


def _variables(program: Program, device: str) -> Mapping[str, str]:
    """Those of the program; of several GPUs it sees only the one that is named, as its first."""
    kind, _, index = device.partition(":")
    if kind != "cuda" or not index:
        return program.variables
    seen = program.variables.get(_VISIBLE)
    return {**program.variables, _VISIBLE: seen.split(",")[int(index)] if seen else index}


def _kv_cache_bytes(request: BackendRequest) -> int | None:
    """For all requests at their longest, and as much again for what a server sets aside."""
    per_token = request.facts.kv_bytes_per_token
    if per_token is None:
        return None
    tokens = request.num_parallel * request.context_length
    return max(2 * tokens * per_token, _LEAST_KV_CACHE_BYTES)


def _is_ready(profile: ServerProfile, url: str) -> bool:
    answer = httpx.get(url + profile.health, timeout=_HEALTH_TIMEOUT_S, trust_env=False)
    return profile.is_ready(answer.status_code, answer.text)


def require_attachable(kind: BackendKind) -> None:
    """Raise UsageError for a runtime that has no server to name by a URL."""
    if not kind.attaches:
        raise UsageError(
            f"{kind.name} is no server that a URL could name",
            "Leave the URL away, or use the backend openai.",
        )


def _api_key(spec: BackendSpec) -> str | None:
    if spec.api_key_env is None:
        return None
    key = read_api_key(spec.api_key_env)
    if key is None:
        raise UsageError(
            f"{spec.api_key_env} is empty, and {spec.title} needs the key in it", "Set it."
        )
    return key
