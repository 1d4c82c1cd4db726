"""What tells one server from another, as data and pure functions.

Knows nothing about connections or processes. The law: whatever a server is asked, and whatever it
answers, is put and read here; nothing else in the project knows a server by its name.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Generic, Literal, TypeVar

from llmopt.backends.http_stream import StreamReader
from llmopt.backends.profiles.launch import ContainerSteps, LaunchCommand, LaunchRequest
from llmopt.backends.protocol import GenerationParams

A = TypeVar("A")
Endpoint = Literal["completions", "chat"]


@dataclass(frozen=True, slots=True)
class CompletionRequest:
    """One prompt to be continued.

    prompt: token ids, or text where the profile takes no ids
    cache_salt: what is cached under another salt is not used; None: whatever is cached
    """

    model: str
    prompt: Sequence[int] | str
    params: GenerationParams
    endpoint: Endpoint = "completions"
    cache_salt: str | None = None


@dataclass(frozen=True, slots=True)
class StreamRequest:
    """Where a request is posted, its body, and what reads the answer."""

    path: str
    body: Mapping[str, object]
    reader: Callable[[], StreamReader]


@dataclass(frozen=True, slots=True)
class Question(Generic[A]):
    """One thing that a server can be asked: with POST where there is a body, else with GET.

    `read` makes the answer out of a body of status 200; it raises ValueError, LookupError or
    TypeError where the body holds none.
    """

    path: str
    read: Callable[[str], A]
    body: Mapping[str, object] | None = None


@dataclass(frozen=True, slots=True)
class CacheReset:
    """The POST that empties the prefix cache; once for every `{slot}`, where the server has slots.

    `is_done` takes the status and the body of the answer.
    """

    path: str
    is_done: Callable[[int, str], bool]
    num_slots: Question[int] | None = None


@dataclass(frozen=True, slots=True)
class MetricsPage:
    """A page in Prometheus' text format, and what the samples are called here.

    Names that begin with `num_` are counters, whose growth is reported; all others are as they are.
    """

    path: str
    names: Mapping[str, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerProfile:
    """One kind of server.

    documentation: the pages that this profile was written from
    program: the executable that `launch` runs; None where it can only be attached to
    takes_token_ids: a prompt may be token ids; else it is text, to be checked by its token count
    ignores_eos: it can be told to generate up to `max_tokens`; else lengths are compared
    salts_cache: it knows `CompletionRequest.cache_salt`
    keeps_connections: False where it ends each after one stream, whatever it says
    health: the path that is asked until the server is ready
    is_ready: of the status and the body of that answer
    models: names of the models that it serves
    context_length: of the model by this name: tokens of prompt and answer together
    count_tokens: of a text, for the model by this name
    cache_reset: None where only a restart empties the cache
    """

    name: str
    documentation: tuple[str, ...]
    takes_token_ids: bool
    ignores_eos: bool
    completion: Callable[[CompletionRequest], StreamRequest]
    health: str
    is_ready: Callable[[int, str], bool]
    models: Question[tuple[str, ...]]
    version: Question[str] | None = None
    context_length: Callable[[str], Question[int]] | None = None
    count_tokens: Callable[[str, str], Question[int]] | None = None
    salts_cache: bool = False
    keeps_connections: bool = True
    cache_reset: CacheReset | None = None
    metrics: MetricsPage | None = None
    program: str | None = None
    launch: Callable[[LaunchRequest], LaunchCommand] | None = None
    container: Callable[[LaunchRequest], ContainerSteps] | None = None
