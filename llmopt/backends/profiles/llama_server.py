"""llama.cpp's server, through its OpenAI-compatible endpoints."""

from llmopt.backends.http_request import openai_request
from llmopt.backends.profiles.answers import count_at, is_ok, openai_models, text_at
from llmopt.backends.profiles.launch import LaunchCommand, LaunchRequest
from llmopt.backends.profiles.profile import (
    CacheReset,
    CompletionRequest,
    MetricsPage,
    Question,
    ServerProfile,
    StreamRequest,
)


def _completion(request: CompletionRequest) -> StreamRequest:
    """`timings_per_token` says with every event how many tokens there have been."""
    extensions: dict[str, object] = {
        "stream_options": {"include_usage": True},
        "timings_per_token": True,
        "ignore_eos": request.params.ignore_eos,
        "repeat_penalty": 1.0,
    }
    if request.params.temperature > 0:
        extensions |= {"top_p": 1.0, "top_k": 0, "min_p": 0.0}
    return openai_request(request, extensions)


def _count_tokens(_model: str, text: str) -> Question[int]:
    body = {"content": text, "add_special": True}
    return Question("/tokenize", count_at("tokens"), body)


def _context_length(_model: str) -> Question[int]:
    """Of one slot."""
    return Question("/props", count_at("default_generation_settings", "n_ctx"))


def _launch(request: LaunchRequest) -> LaunchCommand:
    """`-c` is the context of all slots together, which is divided evenly among them."""
    arguments = [request.program, "-m", str(request.checkpoint), "--alias", request.model_name]
    arguments += ["--host", "127.0.0.1", "--port", str(request.port)]
    arguments += ["-c", str(request.context_length * request.num_parallel)]
    arguments += ["-np", str(request.num_parallel)]
    if request.num_threads is not None:
        arguments += ["-t", str(request.num_threads), "-tb", str(request.num_threads)]
    arguments += ["-ngl", "999"] if request.device == "cuda" else ["--device", "none"]
    arguments += ["--metrics", "--no-webui", "--offline"]
    return LaunchCommand((*arguments, *request.extra_args))


_DOCUMENTATION = "https://github.com/ggml-org/llama.cpp/blob/master/tools/server/README.md"

LLAMA_SERVER = ServerProfile(
    name="llama-server",
    documentation=(_DOCUMENTATION,),
    takes_token_ids=True,
    ignores_eos=True,
    keeps_connections=False,  # seen in November 2026, in spite of its field Keep-Alive
    completion=_completion,
    health="/health",  # 503 while the model is loading
    is_ready=is_ok,
    models=openai_models(),
    version=Question("/props", text_at("build_info")),
    context_length=_context_length,
    count_tokens=_count_tokens,
    # 501 unless it was started with --slot-save-path
    cache_reset=CacheReset(
        "/slots/{slot}?action=erase", is_ok, Question("/props", count_at("total_slots"))
    ),
    metrics=MetricsPage(
        "/metrics",
        {
            "llamacpp:prompt_tokens_total": "num_prompt_tokens",
            "llamacpp:prompt_tokens_cached_total": "num_prefix_hit_tokens",
            "llamacpp:tokens_predicted_total": "num_output_tokens",
            "llamacpp:n_decode_total": "num_steps",
            "llamacpp:n_busy_slots_per_decode": "requests_per_step",
            "llamacpp:spec_decode_num_draft_tokens_total": "num_drafted_tokens",
            "llamacpp:spec_decode_num_accepted_tokens_total": "num_accepted_tokens",
        },
    ),
    program="llama-server",
    launch=_launch,
)
