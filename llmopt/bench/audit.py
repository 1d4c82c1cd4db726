"""Result files of other tools under our checks: what can be believed in them, and what not.

Knows nothing about how those tools ran. The law: only what a file holds is judged; a check that the
file has no data for is said to be missing, never passed.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from llmopt.bench.audit_files import read_documents, reading
from llmopt.bench.audit_llama_bench import audit_llama_bench, is_llama_bench
from llmopt.bench.audit_readers import FOREIGN, ForeignRun
from llmopt.bench.percentiles import min_samples
from llmopt.bench.timeline import timeline
from llmopt.bench.validity import MAX_COLD_HIT_RATE, check_errors, check_token_counts
from llmopt.bench.validity_load import check_omission, check_parallelism
from llmopt.bench.validity_runs import check_first_request, check_steady_window
from llmopt.errors import ResultError
from llmopt.results.schema import RequestRecord, ValidityCheck

_TOLERANCE = 0.02  # between a number of the file and what its own events give
_TAIL = 99  # every one of these tools prints it


@dataclass(frozen=True, slots=True)
class Audit:
    """What a file says about one run, checked."""

    tool: str
    title: str
    checks: tuple[ValidityCheck, ...]
    missing: tuple[str, ...]  # checks that the file has no data for

    @property
    def passed(self) -> bool:
        """Whether nothing that could be checked failed."""
        return all(check.passed for check in self.checks)


def audit_file(path: Path) -> list[Audit]:
    """Judge every run in a file. Raises ResultError: unreadable, or of a tool that is not known."""
    documents = read_documents(path)
    if is_llama_bench(documents):
        with reading(path, "llama-bench"):
            return [Audit("llama-bench", *found) for found in audit_llama_bench(documents)]
    for tool, (fits, read) in FOREIGN.items():
        if fits(documents):
            with reading(path, tool):
                return [_audit(tool, run) for run in read(documents)]
    raise ResultError(
        f"{path} is not a result of vllm bench, GuideLLM, AIPerf or llama-bench",
        "Give the tool's own JSON file (GuideLLM: benchmarks.json; AIPerf: profile_export.jsonl).",
    )


def _audit(tool: str, run: ForeignRun) -> Audit:
    missing: list[str] = list(run.missing)
    requests = run.record.requests
    served = [request for request in requests if request.error is None]
    checks = [check_errors(requests)]
    if run.max_tokens is None:
        missing.append("output-length: the lengths that were asked for")
    else:
        checks.append(_output_lengths(served, run.max_tokens))
    if run.prompt_tokens is not None:
        checks.append(_prompt_lengths(served, run.prompt_tokens))
    if any(request.token_counts for request in served):
        checks.append(check_token_counts(served))
    hit_rate = _hit_rate(served)
    if hit_rate is None:
        missing.append("cache-state: what was found in a prefix cache, so cold or warm is unknown")
    else:
        checks.append(_cache(hit_rate))
    checks.append(_tail(served))
    if run.has_schedule:
        checks.append(check_omission(requests))
    else:
        missing.append("coordinated-omission: when the load wanted each request")
    if run.has_times:
        checks += [check_parallelism([run.record]), check_first_request([run.record])]
        checks += [_littles_law(run), check_steady_window([run.record])]
    else:
        missing.append("parallelism, littles-law, steady-window: when each request was sent")
    checks += _printed(run)
    missing.append("client-lag, warm-up, drift, machine: no such file says")
    return Audit(tool, run.title, tuple(checks), tuple(missing))


def _output_lengths(served: Sequence[RequestRecord], wanted: int) -> ValidityCheck:
    wrong = sum(request.num_output_tokens != wanted for request in served)
    detail = f"{len(served) - wrong} of {len(served)} outputs have {wanted} tokens"
    return ValidityCheck("output-length", wrong == 0 and bool(served), detail)


def _prompt_lengths(served: Sequence[RequestRecord], wanted: int) -> ValidityCheck:
    short = sum(request.num_prompt_tokens < wanted for request in served)
    detail = f"{short} of {len(served)} prompts have fewer than {wanted} tokens"
    return ValidityCheck("prompt-length", short == 0 and bool(served), detail)


def _hit_rate(served: Sequence[RequestRecord]) -> float | None:
    cached = [r.num_cached_tokens for r in served if r.num_cached_tokens is not None]
    prompts = sum(request.num_prompt_tokens for request in served)
    return sum(cached) / prompts if cached and prompts else None


def _cache(rate: float) -> ValidityCheck:
    detail = f"{rate:.1%} of the prompt tokens were found in a cache"
    return ValidityCheck("cache-state", rate <= MAX_COLD_HIT_RATE, detail)


def _tail(served: Sequence[RequestRecord]) -> ValidityCheck:
    needed = min_samples(_TAIL)
    detail = f"p{_TAIL} of {len(served)} requests; an interval for it needs {needed}"
    return ValidityCheck("samples", len(served) >= needed, detail)


def _littles_law(run: ForeignRun) -> ValidityCheck:
    """The concurrency that was asked for, against rate x time."""
    if run.concurrency is None or run.record.duration_s <= 0:
        return ValidityCheck("littles-law", True, "no concurrency was asked for")
    mean = timeline(run.record).mean(run.record.duration_s)
    detail = f"{mean:.3g} requests in flight on average, at most {run.concurrency} were asked for"
    return ValidityCheck("littles-law", mean <= run.concurrency * (1 + _TOLERANCE), detail)


def _printed(run: ForeignRun) -> list[ValidityCheck]:
    """The file's own numbers, computed again from its own events."""
    checks = []
    for name, (printed, again) in run.printed.items():
        off = abs(printed / again - 1) if again else float(printed != 0)
        detail = f"{name} is {printed:.4g} in the file, {again:.4g} from its events"
        checks.append(ValidityCheck(f"recomputed:{name}", off <= _TOLERANCE, detail))
    return checks
