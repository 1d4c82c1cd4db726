"""SGLang: `python -m sglang.launch_server`, an OpenAI-compatible server."""

from llmopt.backends.profiles.answers import is_ok, listed_length, openai_models, text_at
from llmopt.backends.profiles.extensions import count_tokens, extended_completion
from llmopt.backends.profiles.launch import LaunchCommand, LaunchRequest
from llmopt.backends.profiles.profile import (
    CacheReset,
    MetricsPage,
    Question,
    ServerProfile,
)

# Formats that are not found out from the checkpoint's own config.
_LOAD_FORMATS = {"gguf": "gguf", "bitsandbytes": "bitsandbytes"}


def _launch(request: LaunchRequest) -> LaunchCommand:
    arguments = [request.program, "-m", "sglang.launch_server"]
    arguments += ["--model-path", str(request.checkpoint)]
    arguments += ["--host", "127.0.0.1", "--port", str(request.port)]
    arguments += ["--served-model-name", request.model_name]
    arguments += ["--dtype", request.dtype, "--device", request.device]
    arguments += ["--context-length", str(request.context_length)]
    arguments += ["--max-running-requests", str(request.num_parallel)]
    arguments += ["--enable-metrics", "--enable-cache-report", "--log-level-http", "warning"]
    if request.quantization in _LOAD_FORMATS:
        load_format = _LOAD_FORMATS[request.quantization]
        arguments += ["--load-format", load_format, "--quantization", request.quantization]
    if request.tokenizer is not None:
        arguments += ["--tokenizer-path", str(request.tokenizer)]
    variables = {"HF_HUB_OFFLINE": "1"}
    if request.device == "cpu":
        variables["SGLANG_USE_CPU_ENGINE"] = "1"
        if request.processors:
            variables["SGLANG_CPU_OMP_THREADS_BIND"] = ",".join(map(str, request.processors))
    return LaunchCommand((*arguments, *request.extra_args), variables)


SGLANG = ServerProfile(
    name="sglang",
    documentation=(
        "https://docs.sglang.ai/basic_usage/openai_api_completions.html",
        "https://docs.sglang.ai/advanced_features/server_arguments.html",
        "https://docs.sglang.ai/basic_usage/native_api.html",
        "https://docs.sglang.ai/references/production_metrics.html",
        "https://docs.sglang.ai/platforms/cpu_server.html",
    ),
    takes_token_ids=True,
    ignores_eos=True,
    salts_cache=True,
    completion=extended_completion,
    health="/health",  # it generates one token, and is 503 until it can
    is_ready=is_ok,
    models=openai_models(),
    version=Question("/server_info", text_at("version")),
    context_length=listed_length,
    count_tokens=count_tokens,
    cache_reset=CacheReset("/flush_cache?timeout=30", is_ok),  # 400 while requests are running
    metrics=MetricsPage(
        "/metrics",
        {
            "sglang:token_usage": "kv_cache_use",
            "sglang:num_retracted_requests_total": "num_preemptions",
            "sglang:cached_tokens_total": "num_prefix_hit_tokens",
            "sglang:prompt_tokens_total": "num_prompt_tokens",
            "sglang:generation_tokens_total": "num_output_tokens",
            "sglang:spec_accept_length": "tokens_per_draft",
        },
    ),
    program="python",
    launch=_launch,
)
