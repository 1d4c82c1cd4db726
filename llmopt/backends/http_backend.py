"""Any HTTP server behind the Backend protocol, driven as its profile says.

Knows nothing about how the server came to run, nor about time: the load generator takes it. The
laws: an event is handed on in the loop's turn in which its last byte arrived; whatever the server
does wrong (status, framing, JSON, an early end) is a BackendError of that request and of no other.
"""

import secrets
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence

from llmopt.backends.http_chunks import REMEDY, error_message
from llmopt.backends.http_connections import Answer, HttpConnections
from llmopt.backends.http_facts import HttpFacts
from llmopt.backends.http_options import ServerOptions
from llmopt.backends.http_request import encode, merge
from llmopt.backends.profiles.profile import CompletionRequest, ServerProfile
from llmopt.backends.protocol import GenerationParams, T, TokenEvent
from llmopt.errors import BackendError, UsageError

UNKNOWN = "unknown"
_MAX_ERROR_BYTES = 1 << 16


class HttpBackend:
    """A server that runs somewhere, asked for one model.

    `decode` makes the text of a prompt out of its token ids, for servers that take no ids; what
    they make of it is checked by the count that they report.
    """

    def __init__(
        self,
        profile: ServerProfile,
        options: ServerOptions,
        decode: Callable[[Sequence[int]], str] | None = None,
    ) -> None:
        self._profile = profile
        self._options = options
        self._decode = decode
        self._model = options.model
        self._version = UNKNOWN
        self._context_length: int | None = None
        self._salt: str | None = None
        self._connections: HttpConnections | None = None
        self._counters: Mapping[str, float] = {}  # of the server, when this was started

    @property
    def name(self) -> str:
        """Name of the server."""
        return self._profile.name

    @property
    def version(self) -> str:
        """Version of the server, where it says one; known after `start`."""
        return self._version

    @property
    def profile(self) -> ServerProfile:
        """What tells the server from others."""
        return self._profile

    @property
    def model(self) -> str | None:
        """The model's name; after `start` as the server calls it."""
        return self._model

    @property
    def context_length(self) -> int | None:
        """Tokens of prompt and answer together, as the server says; known after `start`."""
        return self._context_length

    @property
    def settings(self) -> dict[str, object]:
        """Address, endpoint, limits and what is asked beyond the standard; never the key."""
        return self._options.settings | {
            "model": self._model,
            "prompt_as": "token ids" if self._takes_token_ids else "text",
            "ignores_eos": self._profile.ignores_eos,
            "salts_cache": self._profile.salts_cache,
            "context_length": self._context_length,
        }

    def start(self) -> None:
        """See that the server answers and has the model. Raises BackendError or UsageError."""
        assert self._connections is None, "a backend is started once before it is stopped"
        profile = self._profile
        connections = HttpConnections(self._options.root, reuses=profile.keeps_connections)
        with HttpFacts(self._options) as facts:
            self._model = model = facts.find_model(profile.models, self._options.model)
            self._version = facts.ask(profile.version) or UNKNOWN
            if profile.context_length is not None:
                self._context_length = facts.ask(profile.context_length(model))
            self._counters = facts.read_metrics(profile.metrics)
        self._salt = self._new_salt()
        self._connections = connections

    def drive(self, client: Callable[[], T]) -> T:
        """Run the client here; the server computes elsewhere."""
        return client()

    def stop(self) -> None:
        """Forget the server, which goes on; its connections ended with the client's loop."""
        self._connections = None

    async def stream(
        self, prompt: Sequence[int] | str, params: GenerationParams
    ) -> AsyncGenerator[TokenEvent, None]:
        """Serve one request: one event for every one that the server sends, pings left out."""
        assert self._connections is not None, "a backend is started before it is used"
        request = self._profile.completion(self._request(prompt, params))
        body = encode(merge(request.body, self._options.extra_body))
        reader = request.reader()
        fields = self._options.header | {"Accept": reader.content_type}
        async with self._connections.post(request.path, fields, body) as answer:
            await _check(answer, reader.content_type)
            while piece := await answer.body.read():
                for event in reader.feed(piece):
                    yield event
            reader.close()

    def stats(self) -> dict[str, float]:
        """How many connections were opened."""
        assert self._connections is not None, "a backend is started before it is used"
        return {"num_connections": self._connections.num_opened}

    def server_metrics(self) -> dict[str, float]:
        """What the server says of itself now: by how much its counters have grown since `start`
        (their names begin with `num_`), and everything else as it is; empty where it says nothing.
        """
        with HttpFacts(self._options) as facts:
            now = facts.read_metrics(self._profile.metrics)
        return {
            name: value - self._counters.get(name, 0.0) if name.startswith("num_") else value
            for name, value in now.items()
        }

    def reset_cache(self) -> str | None:
        """Empty the server's prefix cache. Returns why its state is unknown, else None.

        Where requests have a salt they get a new one, so that what was not emptied is not found.
        """
        with HttpFacts(self._options) as facts:
            reason = facts.reset(self._profile.cache_reset)
        self._salt = self._new_salt()
        return reason if self._salt is None else None

    def count_tokens(self, text: str) -> int | None:
        """Tokens of a text by the server's own tokenizer; None where it does not say."""
        assert self._model is not None, "start has found the model"
        if self._profile.count_tokens is None:
            return None
        with HttpFacts(self._options) as facts:
            return facts.ask(self._profile.count_tokens(self._model, text))

    def _new_salt(self) -> str | None:
        return secrets.token_hex(8) if self._profile.salts_cache else None

    @property
    def _takes_token_ids(self) -> bool:
        return self._profile.takes_token_ids and self._options.endpoint == "completions"

    def _request(self, prompt: Sequence[int] | str, params: GenerationParams) -> CompletionRequest:
        """Raises UsageError for token ids that can be neither sent nor decoded."""
        assert self._model is not None, "start has found the model"
        if not isinstance(prompt, str) and not self._takes_token_ids:
            if self._decode is None:
                raise UsageError(
                    f"{self.name} takes prompts as text, and these are token ids",
                    "Give the model's tokenizer, so that they can be decoded.",
                )
            prompt = self._decode(prompt)
        return CompletionRequest(
            model=self._model,
            prompt=prompt,
            params=params,
            endpoint=self._options.endpoint,
            cache_salt=self._salt,
        )


async def _check(answer: Answer, content_type: str) -> None:
    """Raise BackendError for an answer that is not a stream of events."""
    head = answer.head
    if head.status == 200 and head.fields.get("content-type", "").startswith(content_type):
        return
    body = b""
    while len(body) < _MAX_ERROR_BYTES and (piece := await answer.body.read()):
        body += piece
    said = error_message(body.decode(errors="replace")) or "no reason given"
    what = f"{head.status} {head.reason}".strip() if head.status != 200 else "no event stream"
    raise BackendError(f"the server answered with {what}: {said}", REMEDY)
