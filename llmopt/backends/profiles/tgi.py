"""Hugging Face's text-generation-inference, through its native stream of one token per event.

It takes no token ids and cannot ignore the end of text: lengths of answers differ and are compared.
Attached only: it is in no package registry, but comes as a container.
"""

from collections.abc import Mapping

from llmopt.backends.http_request import openai_request
from llmopt.backends.profiles.answers import count_at, is_ok, text_at
from llmopt.backends.profiles.launch import ContainerSteps, LaunchRequest
from llmopt.backends.profiles.profile import (
    CompletionRequest,
    MetricsPage,
    Question,
    ServerProfile,
    StreamRequest,
)
from llmopt.backends.profiles.tgi_stream import TgiStream

IMAGE = "ghcr.io/huggingface/text-generation-inference:3.3.5"


def _completion(request: CompletionRequest) -> StreamRequest:
    """A temperature of 0 is refused; greedy is what it does without sampling."""
    params = request.params
    if request.endpoint == "chat":
        return openai_request(request, {"stream_options": {"include_usage": True}})
    assert isinstance(request.prompt, str), "the profile says that it takes text only"
    parameters: dict[str, object] = {
        "max_new_tokens": params.max_tokens,
        "do_sample": params.temperature > 0,
        "details": True,
        "return_full_text": False,
    }
    if params.temperature > 0:
        parameters["temperature"] = params.temperature
    if params.seed is not None:
        parameters["seed"] = params.seed
    body: Mapping[str, object] = {"inputs": request.prompt, "parameters": parameters}
    return StreamRequest("/generate_stream", body, TgiStream)


def _only_model(body: str) -> tuple[str, ...]:
    return (text_at("model_id")(body),)


def _context_length(_model: str) -> Question[int]:
    return Question("/info", count_at("max_total_tokens"))


def _count_tokens(_model: str, text: str) -> Question[int]:
    return Question("/tokenize", count_at(), {"inputs": text})


def _container(request: LaunchRequest) -> ContainerSteps:
    """The method of quantization is read from the checkpoint; no dtype may be named beside it."""
    on_gpu = request.device == "cuda"
    serve = [request.program, "run", "--rm", "--shm-size", "1g"]
    serve += ["--gpus", "all"] if on_gpu else ["--ipc", "host"]
    serve += ["--publish", f"127.0.0.1:{request.port}:80"]
    serve += ["--volume", f"{request.checkpoint}:/model:ro"]
    serve += ["--env", "HF_HUB_OFFLINE=1", IMAGE if on_gpu else f"{IMAGE}-intel-cpu"]
    serve += ["--model-id", "/model"]
    serve += ["--dtype", request.dtype] if request.quantization is None else []
    serve += ["--max-input-tokens", str(request.context_length - 1)]
    serve += ["--max-total-tokens", str(request.context_length)]
    serve += ["--max-batch-size", str(request.num_parallel)]
    serve += ["--usage-stats", "off"]
    serve += [] if on_gpu else ["--cuda-graphs", "0"]
    return ContainerSteps(((*serve, *request.extra_args),))


TGI = ServerProfile(
    name="tgi",
    documentation=(
        "https://huggingface.github.io/text-generation-inference/",
        "https://huggingface.co/docs/text-generation-inference/reference/launcher",
        "https://huggingface.co/docs/text-generation-inference/reference/metrics",
        "https://huggingface.co/docs/text-generation-inference/installation_intel",
    ),
    takes_token_ids=False,
    ignores_eos=False,
    completion=_completion,
    health="/health",
    is_ready=is_ok,
    models=Question("/info", _only_model),
    version=Question("/info", text_at("version")),
    context_length=_context_length,
    count_tokens=_count_tokens,
    metrics=MetricsPage(
        "/metrics",
        {
            "tgi_request_input_length_sum": "num_prompt_tokens",
            "tgi_request_generated_tokens_sum": "num_output_tokens",
            "tgi_request_skipped_tokens_sum": "num_accepted_tokens",
        },
    ),
    container=_container,
)
