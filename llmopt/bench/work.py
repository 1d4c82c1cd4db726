"""The work that requests need, in FLOPs and bytes, and the share of a ceiling that it makes.

Knows nothing about latencies or backends; imports the result schema only. The law: useful work
only, by the coefficients of the cost model and the lengths that were really served.
"""

from collections.abc import Iterable

from llmopt.results.schema import Ceilings, CostModel, RequestRecord, RunRecord


def useful_flops(requests: Iterable[RequestRecord], cost: CostModel) -> int:
    """FLOPs that the requests' tokens need: what an engine that computes nothing twice would do.

    A request of P prompt and N output tokens passes n = P + N - 1 tokens through the layers (the
    last sampled token is never fed back) and N hidden states through the lm_head; the token at
    position i attends to i + 1 tokens, in total n(n+1)/2, or to its layer's window. This is the
    forward pass of PaLM's MFU (Chowdhery et al. 2022, appendix B: 2 FLOPs per weight, 4*H*D*context
    per token and layer), with the context that each token really has. Prompt tokens that were found
    in a cache are counted as if they had been computed.
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


def flops_per_s(run: RunRecord, cost: CostModel) -> float | None:
    """Useful FLOPs per second of the run."""
    if run.duration_s <= 0:
        return None
    return useful_flops(run.requests, cost) / run.duration_s


def bytes_per_s(run: RunRecord, cost: CostModel) -> float | None:
    """Bytes per second of the run; None without a count of steps."""
    num_steps = run.step_stats.get("num_steps")
    if num_steps is None or run.duration_s <= 0:
        return None
    return moved_bytes(run.requests, num_steps, cost) / run.duration_s


def mfu(run: RunRecord, cost: CostModel, ceilings: Ceilings, compute_dtype: str) -> float | None:
    """Useful FLOPs per second of the run / the measured GEMM ceiling of the executed dtype."""
    return share(flops_per_s(run, cost), ceilings.gemm_flops.get(compute_dtype))


def mbu(run: RunRecord, cost: CostModel, ceilings: Ceilings) -> float | None:
    """Bytes per second of the run / the measured read bandwidth; None without a count of steps."""
    return share(bytes_per_s(run, cost), ceilings.read_bytes_per_s)


def share(rate: float | None, ceiling: float | None) -> float | None:
    """`rate` / `ceiling`; None when either is not known."""
    return None if rate is None or ceiling is None else rate / ceiling
