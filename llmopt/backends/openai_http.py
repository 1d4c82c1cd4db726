"""Any server with OpenAI's interface behind the Backend protocol, streamed over HTTP.

Knows nothing about how the server came to run, nor about time: the load generator takes it. The
laws: an event is handed on in the loop's turn in which its last byte arrived; whatever the server
does wrong (status, framing, JSON, an early end) is a BackendError of that request and of no other.
"""

from collections.abc import AsyncGenerator, Callable, Sequence

import httpx

from llmopt.backends.http_chunks import REMEDY, ChunkReader, error_message
from llmopt.backends.http_connections import Answer, HttpConnections
from llmopt.backends.http_options import ServerOptions
from llmopt.backends.http_request import request_body, request_path
from llmopt.backends.protocol import GenerationParams, T, TokenEvent
from llmopt.backends.sse import SSEParser
from llmopt.errors import BackendError

NAME = "openai"
EVENT_STREAM = "text/event-stream"
_START_TIMEOUT_S = 30.0
_MAX_ERROR_BYTES = 1 << 16


class OpenAIBackend:
    """A server that runs somewhere, asked for one model."""

    def __init__(self, options: ServerOptions) -> None:
        self._options = options
        self._model = options.model
        self._version = "unknown"
        self._connections: HttpConnections | None = None

    @property
    def name(self) -> str:
        """The interface, since any server may stand behind it."""
        return NAME

    @property
    def version(self) -> str:
        """Version of the server, where it has one at `/version`; known after `start`."""
        return self._version

    @property
    def settings(self) -> dict[str, object]:
        """Address, endpoint and what is asked beyond the standard; never the key."""
        return self._options.settings | {"model": self._model}

    def start(self) -> None:
        """See that the server answers and has the model. Raises BackendError or UsageError."""
        assert self._connections is None, "a backend is started once before it is stopped"
        connections = HttpConnections(self._options.root)
        with httpx.Client(
            base_url=self._options.root,
            headers=self._options.header,
            timeout=_START_TIMEOUT_S,
            trust_env=False,  # a proxy would be measured too
        ) as client:
            self._model = _find_model(client, self._options.model)
            self._version = _find_version(client)
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
        assert self._model is not None, "start has found the model"
        body = request_body(self._options, self._model, prompt, params)
        path = request_path(self._options)
        async with self._connections.post(path, self._options.header, body) as answer:
            await _check(answer)
            parser, chunks = SSEParser(), ChunkReader()
            while piece := await answer.body.read():
                for event in parser.feed(piece):
                    tokens = chunks.read(event)
                    if tokens is not None:
                        yield tokens
            chunks.close()

    def stats(self) -> dict[str, float]:
        """How many connections were opened."""
        assert self._connections is not None, "a backend is started before it is used"
        return {"num_connections": self._connections.num_opened}


async def _check(answer: Answer) -> None:
    """Raise BackendError for an answer that is not a stream of events."""
    head = answer.head
    is_stream = head.fields.get("content-type", "").startswith(EVENT_STREAM)
    if head.status == 200 and is_stream:
        return
    body = b""
    while len(body) < _MAX_ERROR_BYTES and (piece := await answer.body.read()):
        body += piece
    said = error_message(body.decode(errors="replace")) or "no reason given"
    what = f"{head.status} {head.reason}".strip() if head.status != 200 else "no event stream"
    raise BackendError(f"the server answered with {what}: {said}", REMEDY)


def _find_model(client: httpx.Client, wanted: str | None) -> str:
    """The model's name, of those that `GET /v1/models` lists."""
    try:
        answer = client.get("/v1/models")
        answer.raise_for_status()
        names = [str(model["id"]) for model in answer.json()["data"]]
    except (httpx.HTTPError, ValueError, LookupError, TypeError) as error:
        raise BackendError(
            f"no list of models at {client.base_url}: {str(error) or type(error).__name__}",
            "See whether the server runs, listens there, and needs a key.",
        ) from None
    if wanted is None and len(names) == 1:
        return names[0]
    if wanted is None or wanted not in names:
        raise BackendError(
            f"the server has {len(names)} models ({', '.join(names[:5])}), asked was: {wanted}",
            "Give the model by one of these names.",
        )
    return wanted


def _find_version(client: httpx.Client) -> str:
    """What `GET /version` says, as vLLM and TensorRT-LLM answer it."""
    try:
        return str(client.get("/version").raise_for_status().json()["version"])
    except (httpx.HTTPError, ValueError, LookupError, TypeError):
        return "unknown"
