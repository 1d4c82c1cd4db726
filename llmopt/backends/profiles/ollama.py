"""Ollama, through its native interface, which alone says how long what took.

It takes no token ids and cannot ignore the end of text: lengths of answers differ and are compared.
It has no reset of its cache. Attached only: it is in no package registry, but comes as a container.
"""

import json

from llmopt.backends.http_request import openai_request
from llmopt.backends.profiles.answers import is_ok, text_at
from llmopt.backends.profiles.launch import ContainerSteps, LaunchRequest
from llmopt.backends.profiles.ollama_stream import OllamaStream
from llmopt.backends.profiles.profile import (
    CompletionRequest,
    Question,
    ServerProfile,
    StreamRequest,
)

IMAGE = "ollama/ollama:0.33.3"
_CONTAINER = "llmopt-ollama"


def _completion(request: CompletionRequest) -> StreamRequest:
    """`raw` leaves the model's template away, so that the prompt is exactly what was sent."""
    params = request.params
    if request.endpoint == "chat":
        return openai_request(request, {"stream_options": {"include_usage": True}})
    assert isinstance(request.prompt, str), "the profile says that it takes text only"
    options: dict[str, object] = {
        "num_predict": params.max_tokens,
        "temperature": params.temperature,
        "repeat_penalty": 1.0,
    }
    if params.temperature > 0:
        options |= {"top_p": 1.0, "top_k": 0, "min_p": 0.0}
    if params.seed is not None:
        options["seed"] = params.seed
    body = {
        "model": request.model,
        "prompt": request.prompt,
        "raw": True,
        "stream": True,
        "keep_alive": -1,
        "options": options,
    }
    return StreamRequest("/api/generate", body, OllamaStream)


def _model_names(body: str) -> tuple[str, ...]:
    """A name without a tag means the tag "latest"."""
    return tuple(str(model["name"]).removesuffix(":latest") for model in json.loads(body)["models"])


def _context_length(model: str) -> Question[int]:
    """`num_ctx` of the model's Modelfile; without it, the server's default counts."""
    return Question("/api/show", _num_ctx, {"model": model})


def _num_ctx(body: str) -> int:
    parameters = json.loads(body)["parameters"]
    rows = [line.split() for line in parameters.splitlines()]
    return int({row[0]: row[1] for row in rows if len(row) > 1}["num_ctx"])


def _container(request: LaunchRequest) -> ContainerSteps:
    """A server, and in it a model with the context and the threads set.

    Without OLLAMA_NUM_PARALLEL requests wait for each other; without a num_ctx, prompts are cut to
    the server's default in silence.
    """
    is_file = request.quantization == "gguf"
    directory = request.checkpoint.parent if is_file else request.checkpoint
    lines = [f"FROM ./{request.checkpoint.name}" if is_file else "FROM ."]
    lines += [f"PARAMETER num_ctx {request.context_length}"]
    if request.num_threads is not None:
        lines += [f"PARAMETER num_thread {request.num_threads}"]
    if request.device == "cpu":
        lines += ["PARAMETER num_gpu 0"]
    serve = [request.program, "run", "--detach", "--rm", "--name", _CONTAINER]
    serve += ["--gpus", "all"] if request.device == "cuda" else []
    serve += ["--publish", f"127.0.0.1:{request.port}:11434"]
    serve += ["--volume", f"{directory}:/checkpoint:ro"]
    for variable in (
        f"OLLAMA_NUM_PARALLEL={request.num_parallel}",
        f"OLLAMA_CONTEXT_LENGTH={request.context_length}",
        "OLLAMA_KEEP_ALIVE=-1",
        "OLLAMA_MAX_LOADED_MODELS=1",
    ):
        serve += ["--env", variable]
    create = [request.program, "exec", _CONTAINER, "ollama", "create", request.model_name]
    create += ["--file", f"/checkpoint/{_MODELFILE}"]
    return ContainerSteps(
        ((*serve, IMAGE, *request.extra_args), tuple(create)),
        {str(directory / _MODELFILE): "\n".join(lines) + "\n"},
    )


_MODELFILE = "Modelfile"

OLLAMA = ServerProfile(
    name="ollama",
    documentation=(
        "https://docs.ollama.com/api/generate",
        "https://docs.ollama.com/api/usage",
        "https://docs.ollama.com/api/errors",
        "https://docs.ollama.com/modelfile",
        "https://docs.ollama.com/faq",
        "https://docs.ollama.com/docker",
    ),
    takes_token_ids=False,
    ignores_eos=False,
    completion=_completion,
    health="/api/version",
    is_ready=is_ok,
    models=Question("/api/tags", _model_names),
    version=Question("/api/version", text_at("version")),
    context_length=_context_length,
    container=_container,
)
