"""Prompt log-probabilities of a server that speaks vLLM's dialect of the OpenAI interface.

`POST /v1/completions` with a prompt of token ids and `prompt_logprobs: k` answers, for every token
of the prompt but the first, with the k likeliest tokens and the token itself. Knows nothing of
statistics. The law: an answer that does not hold what was asked for is an error, never a guess.
"""

import math
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import httpx
import torch

from llmopt.errors import BackendError, UsageError
from llmopt.quality.external.truncated import TruncatedLogProbs
from llmopt.quality.windows import Window

DEFAULT_TOP_K = 20  # what a vLLM server gives at most, unless started with --max-logprobs
KEY_VARIABLE = "VLLM_API_KEY"  # where vLLM itself looks for the key that it asks for
_TIMEOUT_S = 600.0  # for one window: a server without a GPU takes its time
_MOST_PROBABILITY = 1.001  # that the named tokens may have together, with rounding
_REMEDY = "Serve the model with vLLM, and see the server's own log."


class ServerLogProbs:
    """The model that a server serves, read window by window."""

    def __init__(self, client: httpx.Client, model: str, max_tokens: int, top_k: int) -> None:
        self._client = client
        self.name = model
        self.scheme = "served"  # a server does not tell what its weights are stored as
        self._max_tokens = max_tokens
        self._top_k = top_k

    @property
    def max_tokens(self) -> int:
        """Tokens that it can read in front of the last one of a window: it reads that one, too, and
        generates one more.
        """
        return self._max_tokens

    def log_probs(self, window: Window) -> TruncatedLogProbs:
        """The scored positions of a window. Raises BackendError."""
        prompt = window.token_ids.tolist()
        answer = _request(
            self._client,
            "POST",
            "/v1/completions",
            {
                "model": self.name,
                "prompt": prompt,
                "prompt_logprobs": self._top_k,
                "max_tokens": 1,
                "temperature": 0,
            },
        )
        positions = _positions(answer, len(prompt))[-window.num_scored :]
        return _to_tensors(positions, prompt[-window.num_scored :])


@contextmanager
def open_server(
    url: str, *, model: str | None = None, top_k: int = DEFAULT_TOP_K
) -> Iterator[ServerLogProbs]:
    """The model that is served at a URL such as http://127.0.0.1:8000, with or without /v1.

    model: its name there; the only one that is served if None. top_k: the tokens that are asked
    for at each position. The key in VLLM_API_KEY is sent if it is set. Raises UsageError (no URL,
    several models and no name) and BackendError (nothing answers, or not in this dialect).
    """
    root = url.rstrip("/").removesuffix("/v1")
    if not root.startswith(("http://", "https://")):
        raise UsageError(f"{url!r} is not the URL of a server", "Give one as http://host:port.")
    if top_k < 1:
        raise UsageError(f"{top_k} tokens per position were asked for", "Ask for at least 1.")
    key = os.environ.get(KEY_VARIABLE)
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    with httpx.Client(base_url=root, headers=headers, timeout=_TIMEOUT_S) as client:
        name, max_model_len = _served_model(client, model)
        yield ServerLogProbs(client, name, max_model_len - 2, top_k)


def _served_model(client: httpx.Client, wanted: str | None) -> tuple[str, int]:
    """Name and context length of the model to ask."""
    answer = _request(client, "GET", "/v1/models")
    try:
        served = {entry["id"]: entry for entry in answer["data"]}
    except (KeyError, TypeError) as error:
        raise BackendError(f"{client.base_url} does not list its models", _REMEDY) from error
    names = ", ".join(served) or "none"
    if wanted is None and len(served) != 1:
        raise UsageError(f"{client.base_url} serves several models: {names}", "Name one of them.")
    name = next(iter(served)) if wanted is None else wanted
    if name not in served:
        raise UsageError(f"{client.base_url} serves no model {name!r}", f"It serves {names}.")
    limit = served[name].get("max_model_len")
    if not isinstance(limit, int):
        raise BackendError(f"{client.base_url} does not tell its max_model_len", _REMEDY)
    return name, limit


def _request(
    client: httpx.Client, method: str, path: str, body: dict[str, Any] | None = None
) -> Any:
    """The JSON of an answer; BackendError with the server's own words if there is none."""
    try:
        response = client.request(method, path, json=body)
        if response.is_success:
            return response.json()
    except (httpx.HTTPError, ValueError) as error:
        reason = str(error) or type(error).__name__
        raise BackendError(
            f"{client.base_url} does not answer {path} ({reason})",
            "Check that the server runs and the URL is right.",
        ) from error
    said = " ".join(response.text.split())[:300]
    raise BackendError(
        f"{client.base_url} refused {path} ({response.status_code}: {said})", _REMEDY
    )


def _positions(answer: Any, num_tokens: int) -> list[dict[int, float]]:
    """Log-probabilities by token id of every token of the prompt but the first."""
    try:
        positions = answer["choices"][0]["prompt_logprobs"]
        if len(positions) != num_tokens:
            raise BackendError(
                f"the server read {len(positions)} tokens where {num_tokens} were sent",
                "It must not truncate or extend prompts of token ids.",
            )
        return [
            {int(token_id): float(entry["logprob"]) for token_id, entry in position.items()}
            for position in positions[1:]
        ]
    except (KeyError, IndexError, TypeError, ValueError, AttributeError) as error:
        raise BackendError(
            "the server's answer has no prompt_logprobs as vLLM gives them", _REMEDY
        ) from error


def _to_tensors(positions: list[dict[int, float]], next_tokens: list[int]) -> TruncatedLogProbs:
    """One row per position. Raises BackendError for what are no log-probabilities."""
    for position, token_id in zip(positions, next_tokens, strict=True):
        if token_id not in position:
            raise BackendError(
                f"the server does not tell of the prompt's token {token_id}", _REMEDY
            )
        if not math.fsum(map(math.exp, position.values())) <= _MOST_PROBABILITY:
            raise BackendError(
                "the server's log-probabilities make more than 1",
                "It gives logits, perhaps: vLLM's --logprobs-mode must be raw_logprobs.",
            )
    shape = len(positions), max(map(len, positions))
    token_ids = torch.zeros(shape, dtype=torch.int64)
    log_probs = torch.zeros(shape, dtype=torch.float64)
    is_reported = torch.zeros(shape, dtype=torch.bool)
    for row, position in enumerate(positions):
        token_ids[row, : len(position)] = torch.tensor(list(position))
        log_probs[row, : len(position)] = torch.tensor(list(position.values()), dtype=torch.float64)
        is_reported[row, : len(position)] = True
    next_log_probs = [
        position[token_id] for position, token_id in zip(positions, next_tokens, strict=True)
    ]
    return TruncatedLogProbs(
        token_ids, log_probs, is_reported, torch.tensor(next_log_probs, dtype=torch.float64)
    )
