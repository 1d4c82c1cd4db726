"""Requests for a stream of tokens in OpenAI's format, and their encoding.

Source: OpenAI API reference, `POST /v1/completions` and `POST /v1/chat/completions`. The law:
everything that decides what is generated is sent, so that no server's default does.
"""

import json
from collections.abc import Callable, Mapping

from llmopt.backends.http_stream import OpenAIStream, StreamReader
from llmopt.backends.profiles.profile import CompletionRequest, StreamRequest
from llmopt.errors import UsageError


def openai_request(
    request: CompletionRequest,
    extensions: Mapping[str, object],
    *,
    root: str = "/v1",
    reader: Callable[[], StreamReader] = OpenAIStream,
) -> StreamRequest:
    """The standard's request, merged with what a server knows beyond it.

    Raises UsageError for a prompt that the endpoint cannot take.
    """
    params = request.params
    body: dict[str, object] = {"model": request.model}
    if request.endpoint == "completions":
        prompt = request.prompt
        body["prompt"] = prompt if isinstance(prompt, str) else list(prompt)
    elif isinstance(request.prompt, str):
        body["messages"] = [{"role": "user", "content": request.prompt}]
    else:
        raise UsageError("a chat cannot be made of token ids", "Give it a prompt of text.")
    body |= {"max_tokens": params.max_tokens, "temperature": params.temperature, "stream": True}
    if params.seed is not None:
        body["seed"] = params.seed
    path = "completions" if request.endpoint == "completions" else "chat/completions"
    return StreamRequest(f"{root}/{path}", merge(body, extensions), reader)


def merge(body: Mapping[str, object], more: Mapping[str, object]) -> dict[str, object]:
    """Both; where both have an object of one name, the fields of both, else the one of `more`."""
    merged = dict(body)
    for name, value in more.items():
        present = merged.get(name)
        if isinstance(present, Mapping) and isinstance(value, Mapping):
            value = {**present, **value}
        merged[name] = value
    return merged


def encode(body: Mapping[str, object]) -> bytes:
    """As it is sent."""
    return json.dumps(body, separators=(",", ":")).encode()
