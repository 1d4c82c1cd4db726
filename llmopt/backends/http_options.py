"""Where a server is and what it is asked for, beyond what its profile knows.

Knows nothing about connections. The law: a key to the server is read from the environment and is
in nothing that is written or printed.
"""

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from llmopt.backends.profiles.profile import Endpoint
from llmopt.errors import UsageError


@dataclass(frozen=True, slots=True)
class ServerOptions:
    """One model of one server.

    url: such as `http://127.0.0.1:8000`; a `/v1` or `/v3` at its end makes no difference
    model: as the server calls it; None: the only one that it has
    endpoint: "chat" goes through the model's chat template, and takes text only
    extra_body: further fields of every request; an object is merged into the one of that name
    """

    url: str
    model: str | None = None
    endpoint: Endpoint = "completions"
    extra_body: Mapping[str, object] = field(default_factory=dict)
    api_key: str | None = field(default=None, repr=False)

    @property
    def root(self) -> str:
        """The address that all paths are appended to."""
        return re.sub(r"/v\d+$", "", self.url.rstrip("/"))

    @property
    def settings(self) -> dict[str, object]:
        """What goes into a result file: everything but the key."""
        return {
            "url": self.url,
            "endpoint": self.endpoint,
            "extra_body": dict(self.extra_body),
        }

    @property
    def header(self) -> dict[str, str]:
        """The fields of a request's head."""
        fields = {"Content-Type": "application/json"}
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
