"""OpenVINO Model Server, through its OpenAI-compatible endpoints under `/v3`.

It takes one text as the prompt. Attached only. Its metrics count requests, not tokens.
"""

from llmopt.backends.http_request import openai_request
from llmopt.backends.profiles.answers import count_at, is_ok, openai_models, text_at
from llmopt.backends.profiles.profile import (
    CompletionRequest,
    Question,
    ServerProfile,
    StreamRequest,
)


def _completion(request: CompletionRequest) -> StreamRequest:
    extensions: dict[str, object] = {
        "stream_options": {"include_usage": True},
        "ignore_eos": request.params.ignore_eos,
        "repetition_penalty": 1.0,
    }
    if request.params.temperature > 0:
        extensions |= {"top_p": 1.0, "top_k": -1, "min_p": 0.0}
    return openai_request(request, extensions, root="/v3")


def _count_tokens(model: str, text: str) -> Question[int]:
    return Question("/v3/tokenize", count_at("tokens"), {"model": model, "text": text})


OPENVINO = ServerProfile(
    name="openvino",
    documentation=(
        "https://docs.openvino.ai/latest/model-server/ovms_docs_rest_api_completion.html",
        "https://docs.openvino.ai/latest/model-server/ovms_docs_rest_api_tokenize.html",
        "https://docs.openvino.ai/latest/model-server/ovms_docs_rest_api_kfs.html",
    ),
    takes_token_ids=False,
    ignores_eos=True,
    completion=_completion,
    health="/v2/health/ready",
    is_ready=is_ok,
    models=openai_models("/v3"),
    version=Question("/v2", text_at("version")),
    count_tokens=_count_tokens,
)
