"""The numbers of a cell, derived from its raw events.

Knows nothing about models, backends or clocks; imports the result schema only. The law: everything
here can be computed again from a result file. Only requests without an error are samples; their
times count from `scheduled_s`, the moment the load schedule wanted them.

    ttft  first event - scheduled                             one sample per request
    tpot  (last event - first event) / (N - 1)                one per request with N >= 2
    itl   gap between two events / tokens of the later one    one per token after the first event
    e2e   last event - scheduled                              one per request

These are `ttft`, `tpot` and `e2el` of vLLM's `bench serve` and the ITL of AIPerf and GuideLLM (=
tpot); an itl that counts tokens rather than chunks is inference-perf's. Throughputs divide by the
whole run, ramp and drain included.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import pairwise, repeat
from statistics import median

from llmopt.bench.percentiles import summarize_samples
from llmopt.results.schema import Ceilings, CostModel, RequestRecord, RunRecord, Summary


def ttft_s(request: RequestRecord) -> float | None:
    """Time to the first token in seconds; None without one."""
    return None if request.first_token_s is None else request.first_token_s - request.scheduled_s


def tpot_s(request: RequestRecord) -> float | None:
    """Time per output token after the first, in seconds; None for fewer than two tokens."""
    if request.first_token_s is None or request.last_token_s is None:
        return None
    if request.num_output_tokens <= 1:
        return None
    return (request.last_token_s - request.first_token_s) / (request.num_output_tokens - 1)


def itl_s(request: RequestRecord) -> Iterator[float]:
    """Inter-token latencies in seconds: an event of k tokens gives k samples of its gap / k."""
    for (earlier, later), count in zip(
        pairwise(request.token_times_s), request.token_counts[1:], strict=True
    ):
        yield from repeat((later - earlier) / count, count)


def e2e_s(request: RequestRecord) -> float | None:
    """Time to the last token in seconds; None without one."""
    return None if request.last_token_s is None else request.last_token_s - request.scheduled_s


def useful_flops(requests: Iterable[RequestRecord], cost: CostModel) -> int:
    """FLOPs that the requests' tokens need: what an engine that computes nothing twice would do.

    A request of P prompt and N output tokens passes n = P + N - 1 tokens through the layers (the
    last sampled token is never fed back) and N hidden states through the lm_head; the token at
    position i attends to i + 1 tokens, in total n(n+1)/2, or to its layer's window. This is the
    forward pass of PaLM's MFU (Chowdhery et al. 2022, appendix B: 2 FLOPs per weight, 4*H*D*context
    per token and layer), with the context that each token really has.
    """
    total = 0
    for request in requests:
        if request.num_output_tokens == 0:
            continue
        tokens = request.num_prompt_tokens + request.num_output_tokens - 1
        total += tokens * cost.flops_per_token_linear
        total += request.num_output_tokens * cost.flops_lm_head
        total += attended(tokens) * cost.flops_attention_per_token_per_context
        for layers in cost.windowed_layers:
            attention = layers.flops_attention_per_token_per_context
            total += attended(tokens, layers.window) * attention
    return total


def attended(num_tokens: int, window: int | None = None) -> int:
    """How many tokens the first `num_tokens` of a sequence see in all: token i sees i, itself
    among them, and no more than `window`.
    """
    growing = num_tokens if window is None else min(num_tokens, window)
    return growing * (growing + 1) // 2 + (num_tokens - growing) * growing


def moved_bytes(requests: Iterable[RequestRecord], num_steps: float, cost: CostModel) -> float:
    """Bytes that the run must move: the weights once per engine step, and the KV cache.

    Each of the n = P + N - 1 tokens is written to the cache once; the prompt is read once (a lower
    bound: every later chunk of it reads the earlier ones again), and each of the N - 1 decode steps
    reads the whole context up to its own token, or its layer's window. Activations are left out,
    as in gpt-fast's and vLLM's accounts.
    """
    kinds: list[tuple[int | None, int]] = [(None, cost.kv_bytes_per_token)]
    kinds += [(layers.window, layers.kv_bytes_per_token) for layers in cost.windowed_layers]
    total = num_steps * cost.weight_bytes
    for request in requests:
        prompt, output = request.num_prompt_tokens, request.num_output_tokens
        if output == 0:
            continue
        written = prompt + output - 1
        for window, kv_bytes in kinds:
            read_in_decode = attended(written, window) - attended(prompt, window)
            total += (written + prompt + read_in_decode) * kv_bytes
    return total


def mfu(run: RunRecord, cost: CostModel, ceilings: Ceilings, compute_dtype: str) -> float | None:
    """Useful FLOPs per second of the run / the measured GEMM ceiling of the executed dtype."""
    ceiling = ceilings.gemm_flops.get(compute_dtype)
    if ceiling is None or run.duration_s <= 0:
        return None
    return useful_flops(run.requests, cost) / run.duration_s / ceiling


def mbu(run: RunRecord, cost: CostModel, ceilings: Ceilings) -> float | None:
    """Bytes per second of the run / the measured read bandwidth; None without a count of steps."""
    num_steps = run.step_stats.get("num_steps")
    if num_steps is None or run.duration_s <= 0:
        return None
    moved = moved_bytes(run.requests, num_steps, cost)
    return moved / run.duration_s / ceilings.read_bytes_per_s


def summarize(
    runs: Sequence[RunRecord],
    cost: CostModel | None,
    ceilings: Ceilings | None,
    compute_dtype: str,
) -> Summary:
    """Latencies pooled over the requests of all runs; rates, MFU and MBU as medians over runs."""
    assert runs, "a summary needs a run"
    served = [r for run in runs for r in run.requests if r.error is None]

    def latency(
        of: Callable[[RequestRecord], float | None], requests: list[RequestRecord]
    ) -> list[float]:
        return [1000 * value for value in map(of, requests) if value is not None]

    tpots = [latency(tpot_s, [r for r in run.requests if r.error is None]) for run in runs]
    rates = [_rates(run) for run in runs]
    mfus: list[float | None] = [None]
    mbus: list[float | None] = [None]
    if cost is not None and ceilings is not None:
        mfus = [mfu(run, cost, ceilings, compute_dtype) for run in runs]
        mbus = [mbu(run, cost, ceilings) for run in runs]
    return Summary(
        ttft_ms=summarize_samples(latency(ttft_s, served)),
        tpot_ms=summarize_samples(value for values in tpots for value in values),
        itl_ms=summarize_samples(1000 * gap for request in served for gap in itl_s(request)),
        e2e_ms=summarize_samples(latency(e2e_s, served)),
        output_throughput=median(output for output, _, _ in rates),
        total_throughput=median(total for _, total, _ in rates),
        request_throughput=median(requests for _, _, requests in rates),
        mfu=_median(mfus),
        mbu=_median(mbus),
        run_output_throughput=tuple(output for output, _, _ in rates),
        run_tpot_ms=tuple(median(values) for values in tpots if values),
    )


def _rates(run: RunRecord) -> tuple[float, float, float]:
    """Output tokens, all tokens and requests per second, of the requests without an error."""
    if run.duration_s <= 0:
        return 0.0, 0.0, 0.0
    served = [request for request in run.requests if request.error is None]
    output = sum(request.num_output_tokens for request in served)
    prompt = sum(request.num_prompt_tokens for request in served)
    return (
        output / run.duration_s,
        (output + prompt) / run.duration_s,
        len(served) / run.duration_s,
    )


def _median(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return median(known) if known else None
