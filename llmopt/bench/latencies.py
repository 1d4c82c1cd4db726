"""The latencies of one request, by definition id, from its raw events.

Knows nothing about runs or statistics. The law: times count from `scheduled_s`, the moment the load
schedule wanted the request; ids that end in `_sent` count from the moment it was sent, and show
what a client with a queue of its own would have hidden. None (or nothing) for what never came.

    ttft   first token - scheduled                           one sample per request
    tpot   (last token - first token) / (N - 1)              one per request with N >= 2
    itl    gap between two events / tokens of the later one  one per token after the first event
    icl    gap between two events, whatever they hold        one per event after the first
    e2e    last token - scheduled                            one per request
    ntpot  (last token - scheduled) / N                      one per request
    client_lag  sent - scheduled                             one per request
"""

from collections.abc import Callable, Iterator, Mapping
from itertools import pairwise, repeat
from types import MappingProxyType

from llmopt.results.schema import RequestRecord


def ttft_s(request: RequestRecord) -> float | None:
    """Time to the first token in seconds; None without one."""
    return _since(request.first_token_s, request.scheduled_s)


def ttft_sent_s(request: RequestRecord) -> float | None:
    """Time from sending to the first token in seconds; None without one."""
    return _since(request.first_token_s, request.sent_s)


def e2e_s(request: RequestRecord) -> float | None:
    """Time to the last token in seconds; None without one."""
    return _since(request.last_token_s, request.scheduled_s)


def e2e_sent_s(request: RequestRecord) -> float | None:
    """Time from sending to the last token in seconds; None without one."""
    return _since(request.last_token_s, request.sent_s)


def client_lag_s(request: RequestRecord) -> float:
    """How much later than scheduled the client sent the request, in seconds."""
    return request.sent_s - request.scheduled_s


def tpot_s(request: RequestRecord) -> float | None:
    """Time per output token after the first, in seconds; None for fewer than two tokens."""
    if request.first_token_s is None or request.last_token_s is None:
        return None
    if request.num_output_tokens <= 1:
        return None
    return (request.last_token_s - request.first_token_s) / (request.num_output_tokens - 1)


def ntpot_s(request: RequestRecord) -> float | None:
    """End-to-end time per output token, the first among them; None without a token."""
    e2e = e2e_s(request)
    return (
        None if e2e is None or request.num_output_tokens == 0 else e2e / request.num_output_tokens
    )


def itl_s(request: RequestRecord) -> Iterator[float]:
    """Inter-token latencies in seconds: an event of k tokens gives k samples of its gap / k."""
    for (earlier, later), count in zip(
        pairwise(request.token_times_s), request.token_counts[1:], strict=True
    ):
        yield from repeat((later - earlier) / count, count)


def icl_s(request: RequestRecord) -> Iterator[float]:
    """Inter-chunk latencies in seconds: the gaps between events that held tokens."""
    return (later - earlier for earlier, later in pairwise(request.token_times_s))


def _since(time_s: float | None, start_s: float) -> float | None:
    return None if time_s is None else time_s - start_s


def _one(of: Callable[[RequestRecord], float | None]) -> Callable[[RequestRecord], Iterator[float]]:
    def samples(request: RequestRecord) -> Iterator[float]:
        value = of(request)
        if value is not None:
            yield value

    return samples


LATENCIES: Mapping[str, Callable[[RequestRecord], Iterator[float]]] = MappingProxyType(
    {
        "ttft": _one(ttft_s),
        "ttft_sent": _one(ttft_sent_s),
        "tpot": _one(tpot_s),
        "ntpot": _one(ntpot_s),
        "itl": itl_s,
        "icl": icl_s,
        "e2e": _one(e2e_s),
        "e2e_sent": _one(e2e_sent_s),
        "client_lag": _one(client_lag_s),
    }
)
