"""What vLLM added to OpenAI's interface, and other servers took over.

Sources: vLLM's "OpenAI-Compatible Server" and SGLang's "OpenAI APIs - Completions" pages.
"""

from llmopt.backends.http_request import openai_request
from llmopt.backends.profiles.answers import count_at
from llmopt.backends.profiles.profile import CompletionRequest, Question, StreamRequest

COUNTING = {"include_usage": True, "continuous_usage_stats": True}


def extended_completion(request: CompletionRequest) -> StreamRequest:
    """A request that says all that a checkpoint's generation_config.json would decide otherwise."""
    extensions: dict[str, object] = {
        "stream_options": COUNTING,
        "ignore_eos": request.params.ignore_eos,
        "repetition_penalty": 1.0,
    }
    if request.params.temperature > 0:
        extensions |= {"top_p": 1.0, "top_k": -1, "min_p": 0.0}
    if request.cache_salt is not None:
        extensions["cache_salt"] = request.cache_salt
    return openai_request(request, extensions)


def count_tokens(model: str, text: str) -> Question[int]:
    """How many tokens a text has."""
    return Question("/tokenize", count_at("count"), {"model": model, "prompt": text})
