"""TensorRT-LLM: `trtllm-serve`, an OpenAI-compatible server that refuses fields it does not know.

It names the model after its directory, whatever it is asked to. Its cache is emptied by a restart
only. Attached only: its package needs an index of its own, but it comes as a container.
"""

from dataclasses import replace
from pathlib import Path

from llmopt.backends.http_request import openai_request
from llmopt.backends.profiles.answers import count_at, is_ok, openai_models, text_at
from llmopt.backends.profiles.extensions import COUNTING
from llmopt.backends.profiles.launch import ContainerSteps, LaunchCommand, LaunchRequest
from llmopt.backends.profiles.profile import (
    CompletionRequest,
    MetricsPage,
    Question,
    ServerProfile,
    StreamRequest,
)

IMAGE = "nvcr.io/nvidia/tensorrt-llm/release:1.2.1"
_MIN_BATCHED_TOKENS = 8192


def _completion(request: CompletionRequest) -> StreamRequest:
    extensions: dict[str, object] = {
        "stream_options": COUNTING,
        "ignore_eos": request.params.ignore_eos,
    }
    return openai_request(request, extensions)


def _count_tokens(_model: str, text: str) -> Question[int]:
    return Question("/_internal/tokenize", count_at("count"), {"prompt": text})


def _launch(request: LaunchRequest) -> LaunchCommand:
    arguments = [request.program, str(request.checkpoint), "--backend", "pytorch"]
    arguments += ["--host", "127.0.0.1", "--port", str(request.port)]
    arguments += ["--max_batch_size", str(request.num_parallel)]
    arguments += ["--max_seq_len", str(request.context_length)]
    arguments += ["--max_num_tokens", str(max(request.context_length, _MIN_BATCHED_TOKENS))]
    arguments += ["--log_level", "warning"]
    return LaunchCommand((*arguments, *request.extra_args), {"HF_HUB_OFFLINE": "1"})


def _container(request: LaunchRequest) -> ContainerSteps:
    inside = replace(request, program="trtllm-serve", checkpoint=Path("/model"), port=8000)
    command = _launch(inside).arguments
    command = tuple("0.0.0.0" if word == "127.0.0.1" else word for word in command)
    serve = [request.program, "run", "--rm", "--ipc", "host", "--gpus", "all"]
    serve += ["--ulimit", "memlock=-1", "--ulimit", "stack=67108864"]
    serve += ["--publish", f"127.0.0.1:{request.port}:8000"]
    serve += ["--volume", f"{request.checkpoint}:/model:ro", "--env", "HF_HUB_OFFLINE=1", IMAGE]
    return ContainerSteps(((*serve, *command),))


TRTLLM = ServerProfile(
    name="trtllm",
    documentation=(
        "https://nvidia.github.io/TensorRT-LLM/commands/trtllm-serve/trtllm-serve.html",
        "https://nvidia.github.io/TensorRT-LLM/quick-start-guide.html",
        "https://nvidia.github.io/TensorRT-LLM/features/kvcache.html",
    ),
    takes_token_ids=True,
    ignores_eos=True,
    completion=_completion,
    health="/health",
    is_ready=is_ok,
    models=openai_models(),
    version=Question("/version", text_at("version")),
    count_tokens=_count_tokens,
    metrics=MetricsPage(  # /metrics is a list of iterations, each only shown once
        "/prometheus/metrics",
        {
            "trtllm_kv_cache_utilization": "kv_cache_use",
            "trtllm_kv_cache_hit_rate": "prefix_hit_rate",
        },
    ),
    program="trtllm-serve",
    launch=_launch,
    container=_container,
)
