"""Plain questions to a server, outside of the measurement.

Knows nothing about streams. The law: what a server does not answer is unknown, never guessed.
"""

from collections.abc import Mapping
from types import TracebackType
from typing import TypeVar

import httpx

from llmopt.backends.http_chunks import error_message
from llmopt.backends.http_options import ServerOptions
from llmopt.backends.profiles.profile import CacheReset, MetricsPage, Question
from llmopt.backends.prometheus import read_samples
from llmopt.errors import BackendError

A = TypeVar("A")
TIMEOUT_S = 30.0
_NO_ANSWER = (httpx.HTTPError, ValueError, LookupError, TypeError)


class HttpFacts:
    """A client for questions, as long as the context lasts."""

    def __init__(self, options: ServerOptions) -> None:
        self._client = httpx.Client(
            base_url=options.root,
            headers=options.header,
            timeout=TIMEOUT_S,
            trust_env=False,  # a proxy would be measured too
            verify=options.root.startswith("https:"),  # certificates are slow to load
        )

    def __enter__(self) -> "HttpFacts":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._client.close()

    def ask(self, question: Question[A] | None) -> A | None:
        """The answer; None where there is none."""
        try:
            return None if question is None else self._ask(question)
        except _NO_ANSWER:
            return None

    def find_model(self, models: Question[tuple[str, ...]], wanted: str | None) -> str:
        """The model's name, of those that the server lists. Raises BackendError."""
        try:
            names = self._ask(models)
        except _NO_ANSWER as error:
            raise BackendError(
                f"no list of models at {self._client.base_url}: {_reason(error)}",
                "See whether the server runs, listens there, and needs a key.",
            ) from None
        if wanted is None and len(names) == 1:
            return names[0]
        if wanted is None or wanted not in names:
            raise BackendError(
                f"the server has {len(names)} models ({', '.join(names[:5])}), asked was: {wanted}",
                "Give the model by one of these names.",
            )
        return wanted

    def read_metrics(self, page: MetricsPage | None) -> Mapping[str, float]:
        """What the server's metrics say; nothing where it has none, or does not show them."""
        if page is None:
            return {}
        return self.ask(Question(page.path, lambda body: read_samples(body, page.names))) or {}

    def reset(self, cache: CacheReset | None) -> str | None:
        """Empty the prefix cache. Returns why that is not known to have happened, else None."""
        if cache is None:
            return "the server has no call that empties its cache"
        num_slots = self.ask(cache.num_slots)
        if cache.num_slots is not None and num_slots is None:
            return "the server does not say how many slots it has"
        paths = [cache.path.replace("{slot}", str(slot)) for slot in range(num_slots or 1)]
        for path in paths:
            try:
                answer = self._client.post(path)
                is_done = cache.is_done(answer.status_code, answer.text)
            except _NO_ANSWER as error:
                return f"{path}: {_reason(error)}"
            if not is_done:
                return f"{path}: {answer.status_code} {error_message(answer.text)}".rstrip()
        return None

    def _ask(self, question: Question[A]) -> A:
        if question.body is None:
            answer = self._client.get(question.path)
        else:
            answer = self._client.post(question.path, json=dict(question.body))
        return question.read(answer.raise_for_status().text)


def _reason(error: Exception) -> str:
    return str(error) or type(error).__name__
