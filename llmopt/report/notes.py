"""The lines under the table: what the numbers mean, against what, on what, and what is missing.

Knows nothing about layout: each note is one line of plain text. The law: a reader who was not
there can tell from the notes how every column was defined, and which rows not to trust.
"""

from collections.abc import Iterable, Sequence

from llmopt.errors import ResultError
from llmopt.report.columns import three_digits
from llmopt.report.rows import Row
from llmopt.results.schema import Ceilings, CellResult, Environment, QualityRecord

MAX_QUIET_SPREAD = 0.10  # of the median: (max - min) of the runs' throughput above it gets a note

DEFINITIONS = (
    "size: bytes of the checkpoint's weight files; bits/weight: bits of all their tensors / number "
    "of parameters, so embeddings, scales and zeros are included.",
    "KLD: mean KL(base || target) of the next-token distributions, nats per token, with its "
    "confidence interval; top-1: how often both have the same most likely token; PPL ratio: "
    "perplexity of the target / of the base.",
    "TTFT (ttft): from the moment the load wanted the request to its first token. TPOT (tpot): "
    "(last token - first token) / (tokens - 1), so the first token is excluded. Both are p50 over "
    "all requests of all runs.",
    "tok/s (output_throughput): output tokens / duration of the whole run, median of the runs; "
    "speed-up: its ratio to the base at the same load.",
)


def make_notes(
    results: Sequence[CellResult],
    rows: Sequence[Row],
    num_superseded: int,
    errors: Sequence[ResultError],
) -> list[str]:
    """Return the notes for these results and their rows, most needed first."""
    notes = [_problem_note(row) for row in rows if row.status != "ok"]
    notes += [f"not read: {error}" for error in errors]
    if num_superseded:
        notes.append(f"{num_superseded} older results of the same cells are not shown.")
    notes += filter(None, (_spread_note(row) for row in rows))
    if rows:
        notes += DEFINITIONS
    notes += _distinct(_ceilings_note(r.ceilings) for r in results if r.ceilings)
    notes += _distinct(_quality_note(r.quality) for r in results if r.quality)
    notes += _distinct(r.model.note for r in results if r.model and r.model.note)
    notes += _distinct(_load_note(row) for row in rows)
    notes += _distinct(_software_note(r.environment) for r in results)
    return notes


def _problem_note(row: Row) -> str:
    verb = "failed" if row.status == "failed" else "is invalid"
    return f"{row.target} at concurrency {row.load.concurrency} {verb}: {row.reason}"


def _spread_note(row: Row) -> str | None:
    if row.speed is None:
        return None
    low, high = row.speed.output_throughput_min, row.speed.output_throughput_max
    if high - low <= MAX_QUIET_SPREAD * row.speed.output_throughput:
        return None
    return (
        f"{row.target} at concurrency {row.load.concurrency} is noisy: its runs went from "
        f"{three_digits(low)} to {three_digits(high)} tok/s."
    )


def _ceilings_note(ceilings: Ceilings) -> str:
    gemms = ", ".join(
        f"{three_digits(flops / 1e9)} GFLOP/s in {dtype}"
        for dtype, flops in sorted(ceilings.gemm_flops.items())
    )
    return (
        f"MFU (mfu) and MBU (mbu): useful FLOP/s and bytes/s as shares of what this machine was "
        f"measured to do: matrix products {gemms}; reads "
        f"{three_digits(ceilings.read_bytes_per_s / 1e9)} GB/s."
    )


def _quality_note(quality: QualityRecord) -> str:
    return (
        f"Quality against {quality.base_name} ({quality.base_scheme}, perplexity "
        f"{three_digits(quality.base_ppl)}) on {quality.text_name} "
        f"(sha256 {quality.text_sha256[:8]}): {quality.protocol}; {quality.num_tokens} positions; "
        f"{100 * quality.confidence:g} % intervals."
    )


def _load_note(row: Row) -> str:
    load = row.load
    return (
        f"Load: {load.kind} loop of {load.num_requests} requests, {load.concurrency} in flight, "
        f"{load.prompt_tokens} prompt and {load.output_tokens} output tokens each; "
        f"{row.num_runs} runs."
    )


def _software_note(environment: Environment) -> str:
    commit = "no git" if environment.git_sha is None else f"git {environment.git_sha[:7]}"
    if environment.git_dirty:
        commit += ", with uncommitted changes"
    return (
        f"Measured with llmopt {environment.llmopt} ({commit}), torch {environment.torch}, "
        f"transformers {environment.transformers}, Python {environment.python}, {environment.os}, "
        f"{three_digits(environment.memory_bytes / 1e9)} GB of memory."
    )


def _distinct(lines: Iterable[str | None]) -> list[str]:
    return [line for line in dict.fromkeys(lines) if line]
