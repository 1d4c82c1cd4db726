"""What the mock server does with the requests for one of its models."""

from dataclasses import asdict, dataclass
from typing import Any, Literal

Fault = Literal[
    "error event",  # an error in the middle of the stream
    "hang",  # nothing more comes, the connection stays open
    "drop",  # the connection is closed in the middle
    "malformed",  # an event that is not JSON
    "no finish",  # the stream ends well, but without a finish reason
    "status",  # another status than 200, at once
    "not a stream",  # JSON in place of events
    "not http",
    "close before answer",
]


@dataclass(frozen=True, slots=True)
class Behaviour:
    """Delays are counted from the moment when the whole request has been read.

    Token i of N is written at ttft_s + i * tpot_s, or with the last token of its event. `jitter`
    is the share by which each gap may be longer or shorter, uniformly.
    """

    ttft_s: float = 0.02
    tpot_s: float = 0.005
    jitter: float = 0.0
    seed: int = 0
    slots: int | None = None  # requests served at once; the others wait
    first_extra_s: float = 0.0  # before the first token of the model's very first request
    tokens_per_event: int = 1  # the first event holds one
    max_generated: int | None = None  # it stops there, for the reason "stop"
    text: str = " a"  # of one token
    role_first_s: float | None = None  # a chunk without a token, so long after the request
    finish_with_last: bool = False  # the reason comes with the last token, as vLLM's does
    ping_every_s: float | None = None
    cut_bytes: int | None = None  # the most in one write: in the middle of characters, line ends
    line_end: str = "\n"
    usage: Literal["asked", "last chunk", "never"] = "asked"
    knows_each_usage: bool = True
    output_count_error: int = 0  # added to the number of tokens that it says it has generated
    max_prompt: int | None = None  # longer ones lose their beginning, in silence
    cached_tokens: int | None = None
    closes_after: bool = False  # the connection, after each answer and without having said so
    refuses_field: str | None = None  # a field of the request that it answers with 400
    fault: Fault | None = None
    fault_after: int = 3  # tokens
    fault_every: int = 1  # each request of this number has the fault
    status: int = 500

    def to_json(self) -> dict[str, Any]:
        """As the server is told."""
        return asdict(self)
