"""LMDeploy: `lmdeploy serve api_server`.

Its OpenAI-compatible completions read a list as several prompts; token ids are taken by its native
`/generate` only, which also says with every event how many tokens there have been.
"""

from llmopt.backends.http_request import openai_request
from llmopt.backends.profiles.answers import count_at, is_ok, openai_models
from llmopt.backends.profiles.launch import LaunchCommand, LaunchRequest
from llmopt.backends.profiles.lmdeploy_stream import LMDeployStream
from llmopt.backends.profiles.profile import (
    CompletionRequest,
    MetricsPage,
    Question,
    ServerProfile,
    StreamRequest,
)
from llmopt.errors import UsageError

_FORMATS = ("awq", "gptq", "compressed-tensors", "fp8")
_DTYPES = ("float16", "bfloat16")


def _completion(request: CompletionRequest) -> StreamRequest:
    params = request.params
    fields: dict[str, object] = {"ignore_eos": params.ignore_eos, "repetition_penalty": 1.0}
    if params.temperature > 0:
        fields |= {"top_p": 1.0, "top_k": 0, "min_p": 0.0}
    if request.endpoint == "chat":
        return openai_request(request, fields | {"stream_options": {"include_usage": True}})
    is_text = isinstance(request.prompt, str)
    body: dict[str, object] = {
        "prompt" if is_text else "input_ids": request.prompt if is_text else list(request.prompt),
        "max_tokens": params.max_tokens,
        "temperature": params.temperature,
        "stream": True,
    }
    return StreamRequest("/generate", body | fields, LMDeployStream)


def _count_tokens(_model: str, text: str) -> Question[int]:
    return Question("/v1/encode", count_at("length"), {"input": text})


def _launch(request: LaunchRequest) -> LaunchCommand:
    """Raises UsageError for a format or a dtype that it cannot serve."""
    if request.dtype not in _DTYPES:
        raise UsageError(
            f"LMDeploy does not compute in {request.dtype}", f"Choose one of {', '.join(_DTYPES)}."
        )
    if request.quantization not in (None, *_FORMATS):
        raise UsageError(
            f"LMDeploy does not load {request.quantization}", f"It loads {', '.join(_FORMATS)}."
        )
    arguments = [request.program, "serve", "api_server", str(request.checkpoint)]
    arguments += ["--server-name", "127.0.0.1", "--server-port", str(request.port)]
    arguments += ["--model-name", request.model_name, "--dtype", request.dtype]
    arguments += ["--session-len", str(request.context_length)]
    arguments += ["--max-batch-size", str(request.num_parallel), "--log-level", "WARNING"]
    if request.quantization is not None:
        arguments += ["--model-format", request.quantization]
    if request.device != "cuda":
        arguments += ["--backend", "pytorch", "--device", request.device]
    return LaunchCommand((*arguments, *request.extra_args), {"HF_HUB_OFFLINE": "1"})


LMDEPLOY = ServerProfile(
    name="lmdeploy",
    documentation=(
        "https://lmdeploy.readthedocs.io/en/latest/llm/api_server.html",
        "https://lmdeploy.readthedocs.io/en/latest/advance/metrics.html",
    ),
    takes_token_ids=True,
    ignores_eos=True,
    completion=_completion,
    health="/health",
    is_ready=is_ok,
    models=openai_models(),
    count_tokens=_count_tokens,
    metrics=MetricsPage(
        "/metrics",
        {
            "lmdeploy:gpu_cache_usage_perc": "kv_cache_use",
            "lmdeploy:prefix_cache_hit_rate": "prefix_hit_rate",
            "lmdeploy:prompt_tokens_total": "num_prompt_tokens",
            "lmdeploy:generation_tokens_total": "num_output_tokens",
            "lmdeploy:spec_decode_num_draft_tokens_total": "num_drafted_tokens",
            "lmdeploy:spec_decode_num_accepted_tokens_total": "num_accepted_tokens",
        },
    ),
    program="lmdeploy",
    launch=_launch,
)
