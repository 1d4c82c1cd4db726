"""The body of a request for a stream of tokens, in OpenAI's format.

Source: OpenAI API reference, `POST /v1/completions` and `POST /v1/chat/completions`; the fields
beyond it (`ignore_eos`, `continuous_usage_stats`) are vLLM's, which SGLang and others share. The
law: everything that decides what is generated is sent, so that no server's default does.
"""

import json
from collections.abc import Sequence

from llmopt.backends.http_options import ServerOptions
from llmopt.backends.protocol import GenerationParams
from llmopt.errors import UsageError


def request_path(options: ServerOptions) -> str:
    """Where the request goes."""
    return "/v1/completions" if options.endpoint == "completions" else "/v1/chat/completions"


def request_body(
    options: ServerOptions, model: str, prompt: Sequence[int] | str, params: GenerationParams
) -> bytes:
    """The request as JSON. Raises UsageError for a prompt that the endpoint cannot take."""
    body: dict[str, object] = {"model": model}
    if options.endpoint == "completions":
        body["prompt"] = prompt if isinstance(prompt, str) else list(prompt)
    elif isinstance(prompt, str):
        body["messages"] = [{"role": "user", "content": prompt}]
    else:
        raise UsageError("a chat cannot be made of token ids", "Give it a prompt of text.")
    body |= {"max_tokens": params.max_tokens, "temperature": params.temperature, "stream": True}
    if params.seed is not None:
        body["seed"] = params.seed
    if params.ignore_eos and options.ignores_eos:
        body["ignore_eos"] = True
    if options.reports_usage:
        body["stream_options"] = {"include_usage": True}
        if options.reports_each_usage:
            body["stream_options"] = {"include_usage": True, "continuous_usage_stats": True}
    return json.dumps(body | dict(options.extra_body), separators=(",", ":")).encode()
