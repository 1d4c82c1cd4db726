"""llama-bench's JSON under the checks that apply to it.

Knows nothing about the other tools. The law: its numbers are rates of the bare model, without
tokenizing, sampling or a server, and every audit says so.
"""

from collections.abc import Iterator, Sequence
from statistics import fmean, stdev

from llmopt.bench.audit_files import Document
from llmopt.bench.statistics import MIN_RUNS, MIN_TREND, trend
from llmopt.bench.validity_runs import MAX_DRIFT, MAX_SPREAD, SIGNIFICANT
from llmopt.results.schema import ValidityCheck

Found = tuple[str, tuple[ValidityCheck, ...], tuple[str, ...]]  # title, checks, missing

_TESTS = (("pp", "n_prompt"), ("tg", "n_gen"))
_MISSING = (
    "serving: tokenizing, sampling, the server and its queue are not measured, so a server of the "
    "same model is slower",
    "output-length, cache-state, client-lag: there are no requests",
)


def is_llama_bench(documents: Sequence[Document]) -> bool:
    """Whether the file is one of llama-bench."""
    return all("avg_ts" in one and "n_gen" in one for one in documents)


def audit_llama_bench(documents: Sequence[Document]) -> Iterator[Found]:
    """Judge each test of the file."""
    for one in documents:
        tests = [f"{name}{one[key]}" for name, key in _TESTS if one.get(key)]
        title = f"{one.get('model_type', 'model')} {'+'.join(tests)}"
        yield title, tuple(_checks(one)), _MISSING


def _checks(one: Document) -> Iterator[ValidityCheck]:
    samples = [float(value) for value in one.get("samples_ts") or []]
    count = f"{len(samples)} repetitions"
    yield ValidityCheck("samples", len(samples) >= MIN_RUNS, f"{count}, {MIN_RUNS} are needed")
    if len(samples) >= 2:
        variation = stdev(samples) / fmean(samples)
        detail = f"tokens/s vary by {variation:.1%} between {count}"
        yield ValidityCheck("spread", variation <= MAX_SPREAD, detail)
    if len(samples) >= MIN_TREND:
        slope, p_value = trend(samples)
        change = slope * (len(samples) - 1) / fmean(samples)
        drifts = p_value < SIGNIFICANT and abs(change) > MAX_DRIFT
        yield ValidityCheck(
            "drift", not drifts, f"tokens/s change by {change:+.1%} over them, p = {p_value:.2g}"
        )
    if samples:
        off = abs(float(one["avg_ts"]) / fmean(samples) - 1)
        detail = (
            f"the mean is {one['avg_ts']:.4g} in the file, {fmean(samples):.4g} from its samples"
        )
        yield ValidityCheck("recomputed:avg_ts", off <= 0.02, detail)
    warm = one.get("n_gen_warmup")
    if warm is not None:
        yield ValidityCheck("warm-up", bool(warm), f"{warm} untimed tokens before")
