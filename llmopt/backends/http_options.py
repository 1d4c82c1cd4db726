"""What a client must know of an OpenAI-compatible server to ask it for a stream.

Knows nothing about connections. The law: a key to the server is read from the environment and is
in nothing that is written or printed.
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from llmopt.errors import UsageError

Endpoint = Literal["completions", "chat"]


@dataclass(frozen=True, slots=True)
class ServerOptions:
    """Where the server is, which model is asked, and what it understands beyond the standard.

    url: such as `http://127.0.0.1:8000`; a `/v1` at its end makes no difference
    model: as the server calls it; None: the only one that it has
    ignores_eos: it knows `ignore_eos`, as vLLM, SGLang and llama.cpp do
    reports_usage: it knows `stream_options.include_usage`
    reports_each_usage: it knows `continuous_usage_stats`, and says how many tokens an event holds
    extra_body: further fields of every request
    """

    url: str
    model: str | None = None
    endpoint: Endpoint = "completions"
    ignores_eos: bool = True
    reports_usage: bool = True
    reports_each_usage: bool = True
    extra_body: Mapping[str, object] = field(default_factory=dict)
    api_key: str | None = field(default=None, repr=False)

    @property
    def root(self) -> str:
        """The address that all paths are appended to."""
        return self.url.rstrip("/").removesuffix("/v1")

    @property
    def settings(self) -> dict[str, object]:
        """What goes into a result file: everything but the key."""
        names = ("url", "endpoint", "ignores_eos", "reports_usage", "reports_each_usage")
        return {name: getattr(self, name) for name in names} | {"extra_body": dict(self.extra_body)}

    @property
    def header(self) -> dict[str, str]:
        """The fields of a request's head."""
        fields = {"Content-Type": "application/json", "Accept": "text/event-stream"}
        return (
            fields if self.api_key is None else fields | {"Authorization": f"Bearer {self.api_key}"}
        )


def read_api_key(variable: str) -> str | None:
    """The key that an environment variable holds, if any.

    Raises UsageError when a head cannot carry it.
    """
    key = os.environ.get(variable, "").strip()
    if not key.isascii() or not key.isprintable():
        raise UsageError(f"{variable} holds more than one line of ASCII", "Set it to the key.")
    return key or None
