"""Which runtime serves a target, and what a recipe may say of it.

Plain data; knows no runtime by name but llmopt's own. The law: what is absent is as the load wants
it and the same for all runtimes, so that they differ in what they are and in what is said here.
"""

from collections.abc import Sequence
from dataclasses import dataclass

OWN_BACKEND = "llmopt"


@dataclass(frozen=True, slots=True)
class BackendSpec:
    """A runtime by its name in `llmopt backend list`, and how it is started or found.

    label: what it is called in the ids of cells; absent: its name
    url: of a server that runs already; absent: one is started for each run, and ended after it
    model: what that server calls the model; absent: the only one that it has
    api_key_env: the environment variable that holds its key
    server_args: further arguments of a server that is started, after all others
    reuse_server: start one server for all runs of a cell, which are then made one after the other,
        not in turns with other cells
    start_timeout_s: for it to become ready; absent: what the runtime may usually take
    request_timeout_s: a stream that is silent for so long is given up
    """

    name: str = OWN_BACKEND
    label: str | None = None
    url: str | None = None
    model: str | None = None
    api_key_env: str | None = None
    server_args: tuple[str, ...] = ()
    reuse_server: bool = False
    start_timeout_s: float | None = None
    request_timeout_s: float = 600.0

    @property
    def title(self) -> str:
        """What tells it from the others of a recipe."""
        return self.label or self.name


OWN = BackendSpec()


def backend_spec(backend: BackendSpec | str) -> BackendSpec:
    """The spec of a backend that a recipe only names."""
    return BackendSpec(backend) if isinstance(backend, str) else backend


def distinct_backends(backends: Sequence[BackendSpec | str]) -> tuple[BackendSpec, ...]:
    """The specs, each once, in their order."""
    return tuple(dict.fromkeys(map(backend_spec, backends)))
