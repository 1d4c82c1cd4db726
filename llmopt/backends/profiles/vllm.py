"""vLLM: `vllm serve`, an OpenAI-compatible server."""

from llmopt.backends.profiles.answers import (
    field_of,
    is_ok,
    listed_length,
    openai_models,
    text_at,
)
from llmopt.backends.profiles.extensions import count_tokens, extended_completion
from llmopt.backends.profiles.launch import LaunchCommand, LaunchRequest
from llmopt.backends.profiles.profile import (
    CacheReset,
    MetricsPage,
    Question,
    ServerProfile,
)

_CPU_CACHE_BYTES = 4 << 30  # where it is not known what is needed


def _is_reset(status: int, body: str) -> bool:
    return status == 200 and field_of("success")(body) is True


def _launch(request: LaunchRequest) -> LaunchCommand:
    """The method of quantization is found in the checkpoint's own config, and with it the fastest
    kernel for it; naming it here would forbid that choice.
    """
    arguments = [request.program, "serve", str(request.checkpoint)]
    arguments += ["--host", "127.0.0.1", "--port", str(request.port)]
    arguments += ["--served-model-name", request.model_name]
    arguments += ["--dtype", request.dtype]
    arguments += ["--max-model-len", str(request.context_length)]
    arguments += ["--max-num-seqs", str(request.num_parallel)]
    arguments += ["--enable-prompt-tokens-details", "--disable-uvicorn-access-log"]
    if request.tokenizer is not None:
        arguments += ["--tokenizer", str(request.tokenizer)]
    # the developer mode brings /reset_prefix_cache
    variables = {"HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1", "VLLM_SERVER_DEV_MODE": "1"}
    if request.device == "cpu":
        # else it wants 92 % of the memory, and does not start where others use some
        arguments += ["--kv-cache-memory-bytes", str(request.kv_cache_bytes or _CPU_CACHE_BYTES)]
        if request.processors:
            variables["VLLM_CPU_OMP_THREADS_BIND"] = ",".join(map(str, request.processors))
            variables["VLLM_CPU_NUM_OF_RESERVED_CPU"] = "0"
    return LaunchCommand((*arguments, *request.extra_args), variables)


VLLM = ServerProfile(
    name="vllm",
    documentation=(
        "https://docs.vllm.ai/en/latest/serving/openai_compatible_server.html",
        "https://docs.vllm.ai/en/latest/usage/metrics.html",
        "https://docs.vllm.ai/en/latest/configuration/env_vars.html",
    ),
    takes_token_ids=True,
    ignores_eos=True,
    salts_cache=True,
    completion=extended_completion,
    health="/health",
    is_ready=is_ok,
    models=openai_models(),
    version=Question("/version", text_at("version")),
    context_length=listed_length,
    count_tokens=count_tokens,
    # 200 with success: false while requests hold blocks
    cache_reset=CacheReset("/reset_prefix_cache", _is_reset),
    metrics=MetricsPage(
        "/metrics",
        {
            "vllm:kv_cache_usage_perc": "kv_cache_use",
            "vllm:num_preemptions_total": "num_preemptions",
            "vllm:prefix_cache_queries_total": "num_prefix_query_tokens",
            "vllm:prefix_cache_hits_total": "num_prefix_hit_tokens",
            "vllm:prompt_tokens_total": "num_prompt_tokens",
            "vllm:generation_tokens_total": "num_output_tokens",
            "vllm:spec_decode_num_draft_tokens_total": "num_drafted_tokens",
            "vllm:spec_decode_num_accepted_tokens_total": "num_accepted_tokens",
        },
    ),
    program="vllm",
    launch=_launch,
)
