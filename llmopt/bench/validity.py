"""The conditions under which the numbers of a cell mean what they say.

Knows nothing about how the load was made; reads records only, so that any result file can be judged
again. The law: a cell is valid when every check passed; a check says what it saw, passed or not,
and what could not be observed passes and says so. The known traps of benchmarks, and their checks:

    fixed prompts or the order of a sweep warm the prefix cache     cache-state
    a queue in the client hides waiting, such as few connections    coordinated-omission
    the client does not keep up with the rate that was asked for    arrival-rate
    stream events counted as tokens; a role timed as a token        token-counts
    end of text not ignored, or ignored where it must not be        output-length, finish-reasons
    failed requests left out of percentiles; broken templates       requests-served
    prompts cut in silence; another tokenizer on the server         prompt-length
    a server with a single slot                                     parallelism
    the burst at the start; the drain at the end                    start-burst, steady-window
    a slow or busy client                                           client-lag, littles-law
    random prompts distort speculation                              prompt-source
    the first token is of a reasoning, not of an answer             reasoning
    model loading, compiling, autotuning in the first requests      warm-up, first-request
    a mean that falls with load, as cold requests weigh less        first-request (p50 is shown)
    heat, clocks, other work on the machine                         machine, drift, spread
    tails of too few samples                                        samples
    a bare model beside servers (llama-bench)                       `llmopt audit` says so

Checks of client and load are in `validity_load`, of machine and time in `validity_runs`.
"""

from collections.abc import Sequence
from statistics import median

from llmopt.bench.metrics import cache_hit_rate, tokens_per_event
from llmopt.bench.percentiles import min_samples
from llmopt.bench.validity_load import (
    check_arrival_rate,
    check_client_lag,
    check_omission,
    check_parallelism,
    check_start_burst,
)
from llmopt.bench.validity_runs import (
    check_drift,
    check_first_request,
    check_littles_law,
    check_machine,
    check_spread,
    check_steady_window,
    check_warmup,
)
from llmopt.results.schema import LoadSpec, RequestRecord, RunRecord, ValidityCheck

SHOWN_PERCENTILE = 50  # the report's table shows medians
MAX_COLD_HIT_RATE = 0.01  # prompt tokens found in a cache that was declared cold
MAX_TEMPLATE_TOKENS = 64  # that a server may add to every prompt
MAX_LENGTH_DEVIATION = 0.02  # of a prompt that the server tokenizes itself


def check_cell(load: LoadSpec, runs: Sequence[RunRecord]) -> tuple[ValidityCheck, ...]:
    """Judge the runs of one cell."""
    assert runs, "a cell without runs has an error, not checks"
    requests = [request for run in runs for request in run.requests]
    served = [request for request in requests if request.error is None]
    return (
        check_errors(requests),
        check_output_lengths(load, served),
        check_prompt_lengths(load, served),
        check_finish_reasons(load, served),
        check_token_counts(served),
        check_warmup(load, runs),
        check_first_request(runs),
        check_cache(load, runs),
        check_prompt_source(load, runs),
        check_reasoning(served),
        check_client_lag(runs, served),
        check_omission(requests),
        check_arrival_rate(load, runs),
        check_parallelism(runs),
        check_start_burst(load, runs),
        check_samples(load, served),
        check_spread(runs),
        check_drift(runs),
        check_machine(runs),
        check_littles_law(runs),
        check_steady_window(runs),
    )


def check_errors(requests: Sequence[RequestRecord]) -> ValidityCheck:
    """No request failed: a percentile over the survivors would flatter."""
    errors = [request.error for request in requests if request.error is not None]
    detail = f"{len(requests) - len(errors)} of {len(requests)} requests served"
    if errors:
        detail += f"; first error: {errors[0]}"
    return ValidityCheck("requests-served", not errors and bool(requests), detail)


def check_output_lengths(load: LoadSpec, served: Sequence[RequestRecord]) -> ValidityCheck:
    """Every output has the length that was asked for, or is no longer if it may end by itself."""
    wanted = [load.output_tokens if r.max_tokens is None else r.max_tokens for r in served]
    found = [request.num_output_tokens for request in served]
    if ignores_eos(load):
        return _lengths("output-length", found, wanted)
    longer = sum(length > limit for length, limit in zip(found, wanted, strict=True))
    detail = f"outputs may end early; {longer} of {len(found)} are longer than asked"
    return ValidityCheck("output-length", longer == 0 and bool(found), detail)


def check_prompt_lengths(load: LoadSpec, served: Sequence[RequestRecord]) -> ValidityCheck:
    """The backend saw whole prompts, by its own count: no silent truncation, the same tokenizer.

    What a server adds to every prompt, such as a template, is not held against it; where it counts
    the text itself, single prompts may differ by 2 % from what all differ by.
    """
    found = [request.num_prompt_tokens for request in served]
    sent = [request.num_prompt_tokens_sent for request in served]
    known = [count for count in sent if count is not None]
    if len(known) < len(served):
        if load.workload is not None:
            return ValidityCheck("prompt-length", True, "the lengths that were sent are not known")
        return _lengths("prompt-length", found, [load.prompt_tokens] * len(found))
    if not found:
        return ValidityCheck("prompt-length", False, "no request was served")
    extra = [length - count for length, count in zip(found, known, strict=True)]
    usual = median(extra)
    wrong = sum(
        abs(more - usual) > MAX_LENGTH_DEVIATION * count
        for more, count in zip(extra, known, strict=True)
    )
    detail = (
        f"{len(found) - wrong} of {len(found)} prompts have as many tokens as sent and {usual:+g}, "
        f"by the backend's count"
    )
    passed = wrong == 0 and 0 <= usual <= MAX_TEMPLATE_TOKENS
    return ValidityCheck("prompt-length", passed, detail)


def check_finish_reasons(load: LoadSpec, served: Sequence[RequestRecord]) -> ValidityCheck:
    """Streams ended for the reason that the load allows: a length limit, or the model's own end."""
    allowed = {"length"} if ignores_eos(load) else {"length", "stop"}
    wrong = [r.finish_reason for r in served if r.finish_reason not in allowed]
    detail = f"{len(served) - len(wrong)} of {len(served)} ended by {' or '.join(sorted(allowed))}"
    if wrong:
        detail += f"; others by {', '.join(sorted({str(reason) for reason in wrong}))}"
    return ValidityCheck("finish-reasons", not wrong and bool(served), detail)


def check_token_counts(served: Sequence[RequestRecord]) -> ValidityCheck:
    """Tokens were counted, not stream events: the counts of the events add up to the outputs."""
    assumed = sum(request.counted_by == "events" for request in served)
    wrong = sum(sum(request.token_counts) != request.num_output_tokens for request in served)
    empty = sum(min(request.token_counts, default=1) < 1 for request in served)
    per_event = tokens_per_event(served)
    detail = "no tokens" if per_event is None else f"{per_event:.3g} tokens per event"
    if assumed:
        detail += f"; the backend did not say how many in {assumed} of {len(served)} requests"
    if wrong:
        detail += f"; in {wrong} of {len(served)} requests the events do not add up to the output"
    if empty:
        detail += f"; in {empty} of {len(served)} an event without a token is timed as one"
    passed = not assumed and not wrong and not empty and bool(served)
    return ValidityCheck("token-counts", passed, detail)


def check_cache(load: LoadSpec, runs: Sequence[RunRecord]) -> ValidityCheck:
    """The prefix cache was as the workload declares: cold, unless prompts are meant to share."""
    rate = cache_hit_rate(runs)
    seen = "not reported" if rate is None else f"{rate:.1%} of the prompt tokens"
    if shares_prefixes(load):
        return ValidityCheck("cache-state", True, f"shared by design; found in a cache: {seen}")
    if rate is not None:
        detail = f"declared cold; found in a cache: {seen}"
        return ValidityCheck("cache-state", rate <= MAX_COLD_HIT_RATE, detail)
    kept = sum(run.cache_emptied is False for run in runs)
    unknown = sum(run.cache_emptied is None for run in runs)
    detail = f"declared cold; hits are not reported; {kept} of {len(runs)} runs on a used cache"
    if unknown:
        detail += f", unknown in {unknown} of {len(runs)} runs"
    return ValidityCheck("cache-state", kept == 0, detail)


def check_prompt_source(load: LoadSpec, runs: Sequence[RunRecord]) -> ValidityCheck:
    """Prompts of random tokens say nothing about speculation: they distort what is accepted."""
    source = "text" if load.workload is None else load.workload.source
    drafted = sum(run.step_stats.get("num_draft_tokens", 0) for run in runs)
    wrong = source == "random tokens" and drafted > 0
    detail = f"prompts of {source}" + (", with speculation" if drafted else "")
    return ValidityCheck("prompt-source", not wrong, detail)


def check_reasoning(served: Sequence[RequestRecord]) -> ValidityCheck:
    """All streams begin with the same thing: the TTFT is to the first token, of a reasoning too.

    How much later the answer begins is said; a percentile over both kinds would mean nothing.
    """
    thinking = [request for request in served if request.num_reasoning_events]
    if not thinking:
        return ValidityCheck("reasoning", True, "no stream told a reasoning from its answer")
    detail = f"{len(thinking)} of {len(served)} streams begin with a reasoning, where TTFT ends"
    waits = [
        1e3 * (request.first_answer_s - request.first_token_s)
        for request in thinking
        if request.first_answer_s is not None and request.first_token_s is not None
    ]
    if waits:
        detail += f"; their answers begin {median(waits):.3g} ms later at p50"
    if len(waits) < len(thinking):
        detail += f"; {len(thinking) - len(waits)} never begin one"
    return ValidityCheck("reasoning", len(thinking) == len(served), detail)


def check_samples(load: LoadSpec, served: Sequence[RequestRecord]) -> ValidityCheck:
    """There are enough requests for a 95 % interval of every percentile that is shown or decided
    by: those of the table, and of the SLO.
    """
    percents = [term.percent for term in load.slo if term.percent is not None]
    highest = max([SHOWN_PERCENTILE, *percents], key=min_samples)
    needed = min_samples(highest)
    supported = [p for p in (50, 90, 95, 99, 99.9) if len(served) >= min_samples(p)]
    detail = f"{len(served)} requests support " + (
        f"percentiles up to p{supported[-1]:g}" if supported else "no percentile"
    )
    if len(served) < needed:
        detail += f"; p{highest:g} needs {needed}"
    return ValidityCheck("samples", len(served) >= needed, detail)


def ignores_eos(load: LoadSpec) -> bool:
    """Whether every output must go on to its limit."""
    return load.workload is None or load.workload.ignore_eos


def shares_prefixes(load: LoadSpec) -> bool:
    """Whether the workload itself declares that prompts begin alike."""
    workload = load.workload
    if workload is None:
        return False
    return workload.prefix_groups > 0 or workload.turns > 1 or not workload.unique_prompts


def _lengths(name: str, found: Sequence[int], wanted: Sequence[int]) -> ValidityCheck:
    """Every request has the length that was asked for."""
    lengths = [n for n, asked in zip(found, wanted, strict=True) if n != asked]
    asked_for = str(wanted[0]) if len(set(wanted)) == 1 else "as many as asked"
    if lengths:
        detail = (
            f"{len(lengths)} of {len(found)} have {min(lengths)} to {max(lengths)} tokens, "
            f"not {asked_for}"
        )
    else:
        count = asked_for if wanted else "the asked number of"
        detail = f"{len(found)} of {len(found)} have {count} tokens"
    return ValidityCheck(name, not lengths and bool(found), detail)
