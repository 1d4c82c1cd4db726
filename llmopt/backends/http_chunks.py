"""Token events out of the chunks of an OpenAI-compatible stream.

Source: OpenAI API reference, the completion and chat completion chunk objects; llama.cpp's
`timings` from its server's README. Knows nothing about HTTP. The laws: a chunk is not a token: an
event's tokens are counted by the server where it says how many there are; a stream that ends
without a finish reason, or contradicts itself, has failed.
"""

import json
from collections.abc import Mapping
from typing import Any

from llmopt.backends.protocol import TokenEvent
from llmopt.backends.sse import ServerSentEvent
from llmopt.errors import BackendError

DONE = "[DONE]"
REMEDY = "See the server's own log."
_REASONING_FIELDS = ("reasoning_content", "reasoning")  # of a chat's delta
_MAX_EXCERPT = 200


class TokenCounts:
    """Tokens handed on of one stream. The law: their sum is the server's own count so far."""

    def __init__(self) -> None:
        self._num_counted = 0

    def add(self, num_tokens: int) -> int:
        """Tokens that the server does not count."""
        self._num_counted += num_tokens
        return num_tokens

    def advance(self, count: int) -> int:
        """Tokens that are new, of `count` so far. Raises BackendError when there are fewer."""
        num_tokens = count - self._num_counted
        if num_tokens < 0:
            message = f"the server counts {count} tokens after {self._num_counted}"
            raise BackendError(message, REMEDY)
        self._num_counted = count
        return num_tokens


class ChunkReader:
    """What one stream has said so far."""

    def __init__(self) -> None:
        self._counts = TokenCounts()
        self._is_guessed = False  # an event with text did not say how many tokens it holds
        self._finish_reason: str | None = None

    def read(self, event: ServerSentEvent) -> TokenEvent | None:
        """What the event brings; None for the mark at the end. Raises BackendError."""
        if event.data == DONE:
            return None
        chunk = parse_object(event.data, is_error=event.event == "error")
        choice = _first_choice(chunk)
        usage, timings = object_of(chunk, "usage"), object_of(chunk, "timings")
        finish_reason = choice.get("finish_reason")
        self._finish_reason = finish_reason or self._finish_reason
        answer, reasoning = _texts(choice)
        text = reasoning + answer
        num_tokens, total = self._count(bool(text), _server_count(usage, timings))
        return TokenEvent(
            num_tokens=num_tokens,
            is_guess=bool(text) and self._is_guessed,
            has_choice=bool(choice),
            finish_reason=finish_reason,
            num_prompt_tokens=usage.get("prompt_tokens"),
            num_cached_tokens=_cached_count(usage, timings),
            total_tokens=total,
            server_timings_s=_seconds(timings),
            is_reasoning=bool(reasoning) and not answer,
            text=text,
        )

    def close(self) -> None:
        """The stream has ended. Raises BackendError when it was not finished."""
        if self._finish_reason is None:
            raise BackendError("the stream ended without a finish reason", REMEDY)

    def _count(self, has_text: bool, server_count: int | None) -> tuple[int, int | None]:
        """Tokens of this event, and the total of a stream whose events did not say theirs."""
        if server_count is None or self._is_guessed:
            self._is_guessed |= has_text
            return self._counts.add(int(has_text)), server_count
        return self._counts.advance(server_count), None


def parse_object(data: str, *, is_error: bool = False) -> dict[str, Any]:
    """The JSON object of one event or line.

    Raises BackendError for what is none, and for an error, as all of the servers write it.
    """
    try:
        found = json.loads(data)
    except ValueError:
        raise BackendError(f"an event is not JSON: {_excerpt(data)}", REMEDY) from None
    if not isinstance(found, dict):
        raise BackendError(f"an event is not an object: {_excerpt(data)}", REMEDY)
    if is_error or found.get("error") or found.get("object") == "error":
        raise BackendError(f"the server broke off: {error_message(data)}", REMEDY)
    return found


def error_message(body: str) -> str:
    """What a body says went wrong, if it is an error as OpenAI or FastAPI write them."""
    try:
        found = json.loads(body)
    except ValueError:
        return _excerpt(body)
    for key in ("error", "detail", "message"):
        if isinstance(found, dict) and found.get(key):
            found = found[key]
    return _excerpt(found if isinstance(found, str) else json.dumps(found))


def object_of(parent: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    """A field that is an object; empty where it is missing, null or something else."""
    found = parent.get(name)
    return found if isinstance(found, dict) else {}


def _first_choice(chunk: Mapping[str, Any]) -> Mapping[str, Any]:
    choices = chunk.get("choices")
    if isinstance(choices, list) and choices and isinstance(choices[0], dict):
        return choices[0]
    return {}


def _texts(choice: Mapping[str, Any]) -> tuple[str, str]:
    """Text of the answer, and of the reasoning before it."""
    delta = object_of(choice, "delta")
    reasoning = next((delta[name] for name in _REASONING_FIELDS if delta.get(name)), "")
    return choice.get("text") or delta.get("content") or "", reasoning


def _cached_count(usage: Mapping[str, Any], timings: Mapping[str, Any]) -> int | None:
    """Tokens of the prompt that were found in a cache, as OpenAI or llama.cpp says it."""
    details = object_of(usage, "prompt_tokens_details")
    found = details.get("cached_tokens", timings.get("cache_n"))
    return found if isinstance(found, int) else None


def _server_count(usage: Mapping[str, Any], timings: Mapping[str, Any]) -> int | None:
    """Tokens of the request so far, where the server counts them: vLLM's and SGLang's usage with
    every chunk, llama.cpp's timings with every token, or the usage at the end.
    """
    for counts, name in ((usage, "completion_tokens"), (timings, "predicted_n")):
        if isinstance(count := counts.get(name), int):
            return count
    return None


def _seconds(timings: Mapping[str, Any]) -> dict[str, float] | None:
    """llama.cpp's timings: every `*_ms` in seconds."""
    seconds = {
        f"{name.removesuffix('_ms')}_s": value / 1000
        for name, value in timings.items()
        if name.endswith("_ms") and isinstance(value, int | float)
    }
    return seconds or None


def _excerpt(text: str) -> str:
    return text if len(text) <= _MAX_EXCERPT else text[:_MAX_EXCERPT] + " ..."
