"""Any server with OpenAI's interface: with the extensions that most share, or without any.

The extensions are vLLM's, which others took over. A server that refuses fields it does not know is
asked as "openai-strict"; what it then makes of the end of text is found by the probe.
"""

from collections.abc import Callable

from llmopt.backends.http_request import openai_request
from llmopt.backends.profiles.answers import is_ok, openai_models, text_at
from llmopt.backends.profiles.extensions import COUNTING
from llmopt.backends.profiles.profile import (
    CompletionRequest,
    Question,
    ServerProfile,
    StreamRequest,
)


def _extended(request: CompletionRequest) -> StreamRequest:
    extensions: dict[str, object] = {"stream_options": COUNTING}
    if request.params.ignore_eos:
        extensions["ignore_eos"] = True
    return openai_request(request, extensions)


def _strict(request: CompletionRequest) -> StreamRequest:
    return openai_request(request, {"stream_options": {"include_usage": True}})


def _profile(
    name: str, completion: Callable[[CompletionRequest], StreamRequest], *, ignores_eos: bool
) -> ServerProfile:
    return ServerProfile(
        name=name,
        documentation=("https://platform.openai.com/docs/api-reference/completions",),
        takes_token_ids=True,
        ignores_eos=ignores_eos,
        completion=completion,
        health="/v1/models",
        is_ready=is_ok,
        models=openai_models(),
        version=Question("/version", text_at("version")),
    )


OPENAI = _profile("openai", _extended, ignores_eos=True)
OPENAI_STRICT = _profile("openai-strict", _strict, ignores_eos=False)
