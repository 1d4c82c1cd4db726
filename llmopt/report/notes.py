"""The lines under the table: what the numbers mean, against what, on what, and what is missing.

Knows nothing about layout: each note is one line of plain text. The law: a reader who was not
there can tell from the notes how every column was defined, and which rows not to trust.
"""

from collections.abc import Iterable, Iterator, Sequence

from llmopt.errors import ResultError
from llmopt.report.attribution import explanation_notes, profile_notes
from llmopt.report.columns import OWN_ENGINE, kld_interval_text, load_text, three_digits
from llmopt.report.engine_notes import engine_notes
from llmopt.report.load_notes import load_notes, slo_text
from llmopt.report.rows import Row, imported_from
from llmopt.results.schema import (
    Ceilings,
    CellResult,
    Environment,
    LoadSpec,
    NoiseFloor,
    QualityRecord,
)

MAX_QUIET_SPREAD = 0.10  # of the median: (max - min) of the runs' throughput above it gets a note

_QUALITY_DEFINITION = (
    "KLD: mean KL(base || target) of the next-token distributions, nats per token, with its "
    "confidence interval; top-1: how often both have the same most likely token; PPL ratio: "
    "perplexity of the target / of the base."
)
VERDICT_DEFINITION = (
    "vs noise: KLD and perplexity against the noise floor, which is what rounding in 16 bits alone "
    "does to the base. '= base': the KLD is not above that of the noise, within the interval of "
    "their ratio; '3.5x': it is 3.5 times that, and the perplexity is no worse than noise "
    "explains; 'worse': it is above it, and so is the loss in perplexity."
)
SPEED_DEFINITIONS = (
    "size: bytes of the checkpoint's weight files; bits/weight: bits of all their tensors / number "
    "of parameters, so embeddings, scales and zeros are included.",
    _QUALITY_DEFINITION,
    "TTFT (ttft): from the moment the load wanted the request to its first token. TPOT (tpot): "
    "(last token - first token) / (tokens - 1), so the first token is excluded. Both are p50 over "
    "all requests of all runs.",
    "tok/s (output_throughput): output tokens / duration of the whole run, median of the runs; "
    "speed-up: its ratio to the base at the same load, median of the pairs of runs.",
)
QUALITY_DEFINITIONS = (
    "linear bits: stored bits of all linear layers in the decoder blocks, with scales, zero points "
    "and indices / their weights; size: bytes of the weight files, with embeddings.",
    _QUALITY_DEFINITION,
    "seconds: quantizing and writing, without what the schemes of a pass share; peak: the most "
    "memory that the process held while it worked for the scheme or for all of the pass, mapped "
    "files left out.",
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
    notes += filter(None, map(_drift_note, rows))
    notes += _spread_notes(rows)
    notes += filter(None, map(_slo_note, rows))
    notes += load_notes(rows, _name)
    notes += _cost_notes(rows)
    notes += engine_notes(results, rows, _name)
    notes += explanation_notes(results, rows, _name)
    notes += profile_notes(results, rows, _name)
    definitions: list[str] = []
    if any(row.load is not None for row in rows):
        definitions += SPEED_DEFINITIONS
    if any(row.load is None for row in rows):
        definitions += QUALITY_DEFINITIONS
    notes += _distinct(definitions)
    floors = _distinct(_noise_note(row.quality.noise) for row in rows if row.quality)
    notes += [VERDICT_DEFINITION, *floors] if floors else []
    notes += _distinct(_ceilings_note(r.ceilings) for r in results if r.ceilings)
    several = len({row.recipe for row in rows}) > 1
    of = {recipe: f"{recipe}: " if several else "" for recipe in (row.recipe for row in rows)}
    notes += _distinct(
        of[r.recipe_name] + _quality_note(r.quality) for r in results if r.quality is not None
    )
    notes += _distinct(of[row.recipe] + note for row in rows for note in _quantization_notes(row))
    notes += _distinct(r.model.note for r in results if r.model and r.model.note)
    notes += [_import_note(row) for row in rows if row.imported_from is not None]
    notes += _distinct(
        _load_note(row.load, row.num_runs)
        for row in rows
        if row.load is not None and row.imported_from is None
    )
    notes += _distinct(_software_note(r.environment) for r in results if imported_from(r) is None)
    return notes


def _problem_note(row: Row) -> str:
    verb = "failed" if row.status == "failed" else "is invalid"
    return f"{_name(row)} {verb}: {row.reason}"


def _name(row: Row) -> str:
    backend = row.backend.partition(" ")[0]
    name = row.target if backend == OWN_ENGINE else f"{row.target} on {backend}"
    if row.load is None or not row.load.concurrency:
        return name
    if row.load.kind == "closed":
        return f"{name} at concurrency {row.load.concurrency}"
    return f"{name} at {load_text(row.load)}"


def _drift_note(row: Row) -> str | None:
    if row.speed is None or row.drift is None:
        return None
    return f"{_name(row)} drifted, as all that took turns with it may have: {row.drift}."


def _spread_notes(rows: Sequence[Row]) -> Iterator[str]:
    """All whose runs differ by more than a quiet machine's."""
    noisy = []
    for row in rows:
        if row.speed is None:
            continue
        low, high = row.speed.output_throughput_min, row.speed.output_throughput_max
        if high - low > MAX_QUIET_SPREAD * row.speed.output_throughput:
            noisy.append(f"{_name(row)} from {three_digits(low)} to {three_digits(high)}")
    if noisy:
        yield f"Noisy, tok/s of the runs: {', '.join(noisy)}."


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


def _noise_note(noise: NoiseFloor | None) -> str | None:
    if noise is None:
        return None
    low, high = noise.ppl_ratio_ci
    return (
        f"The noise floor is the base in {noise.scheme}: KLD "
        f"{kld_interval_text(noise.kld_mean, noise.kld_mean_ci)}, PPL ratio "
        f"{noise.ppl_ratio:.4f} [{low:.4f}, {high:.4f}]."
    )


def _quality_note(quality: QualityRecord) -> str:
    source = "" if quality.source == OWN_ENGINE else f", log-probabilities of {quality.source}"
    return (
        f"Quality against {quality.base_name} ({quality.base_scheme}, perplexity "
        f"{three_digits(quality.base_ppl)}) on {quality.text_name} "
        f"(sha256 {quality.text_sha256[:8]}), protocol {quality.protocol_name}: "
        f"{quality.protocol}; {quality.num_tokens} positions; "
        f"{100 * quality.confidence:g} % intervals{source}."
    )


def _quantization_notes(row: Row) -> Iterator[str]:
    """What a quantizer saw, and what its schemes shared; of rows that say what it took."""
    made = row.quantization
    if row.load is not None or made is None:
        return
    seen = made.calibration
    if seen is not None:
        yield (
            f"Calibration: {seen.num_samples} windows of {seen.sample_tokens} tokens of "
            f"{seen.text_name} (sha256 {seen.text_sha256[:8]})."
        )
    if made.shared_seconds:
        yield f"Shared by the schemes of a pass: {three_digits(made.shared_seconds)} s."


def _import_note(row: Row) -> str:
    """An imported row has none of llmopt's checks but that its requests succeeded."""
    size = (
        f"{row.load.num_requests} requests" if row.load and row.load.num_requests else "no requests"
    )
    return (
        f"{row.target} was imported from {row.imported_from} ({size}): computed from that file by "
        f"the definitions here; it was not measured by llmopt, and what the file does not say is "
        f"unknown. llmopt audit judges the file."
    )


def _load_note(load: LoadSpec, num_runs: int) -> str:
    shape = f"closed loop of {load.num_requests} requests, {load.concurrency} in flight"
    if load.kind != "closed":
        rate = "" if load.rate is None else f" at {load.rate:.3g} requests/s"
        shape = f"open loop ({load.kind}) of {load.num_requests} requests{rate}"
    mean = "" if load.workload is None else " on average"
    return (
        f"Load: {shape}, {load.prompt_tokens} prompt and {load.output_tokens} output tokens "
        f"each{mean}; {num_runs} run{'' if num_runs == 1 else 's'}."
    )


def _slo_note(row: Row) -> str | None:
    """Goodput, and whether the SLO holds."""
    goodput = row.speed.summary.goodput if row.speed else None
    if goodput is None or row.load is None:
        return None
    return (
        f"{_name(row)} {'keeps' if goodput.met else 'misses'} the SLO "
        f"({slo_text(row.load.slo)}): goodput "
        f"{three_digits(goodput.requests_per_s)} requests/s, {100 * goodput.share:.1f} % of all."
    )


def _cost_notes(rows: Sequence[Row]) -> Iterator[str]:
    """Energy and cost of all rows, where a counter or a price was there."""
    for title, name in (
        ("Energy per output token, J", "joules_per_token"),
        ("Cost of a million output tokens, in the unit of the price", "cost_per_million_tokens"),
    ):
        values = [(row, getattr(row.speed.summary, name)) for row in rows if row.speed]
        known = [
            f"{_name(row)} {three_digits(value)}" for row, value in values if value is not None
        ]
        if known:
            yield f"{title}: {', '.join(known)}."


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
