"""Rows: what a result file says about one target under one load, ready to print.

Knows nothing about layout. The law: a number that should not be believed is not in a row. A cell
that failed, or failed a validity check, keeps its size and quality, says why, and has no speed;
and a speed-up exists only against the base, or the baseline that was asked for, under the same
recipe, load and machine, and of the same backend unless another one is named.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from statistics import median
from typing import Literal

from llmopt.bench.latencies import ttft_s
from llmopt.bench.statistics import paired_ratio
from llmopt.report.baseline import read_baseline
from llmopt.report.engine_figures import EngineFigures, engine_figures
from llmopt.results.schema import (
    CellResult,
    Interval,
    LoadSpec,
    ModelFacts,
    QualityRecord,
    QuantizationRecord,
    SearchRecord,
    StoppingRecord,
    Summary,
)

Status = Literal["ok", "invalid", "failed"]

DRIFT = "drift"  # the check of that name
_LoadKey = tuple[int, int, int, str, float]
_BaseKey = tuple[str, str, str, str, LoadSpec | None]
_Ratio = tuple[float | None, Interval | None]
_UNKNOWN: _Ratio = (None, None)


@dataclass(frozen=True, slots=True)
class Speed:
    """The speed of a row: its summary, the spread of its runs, and the ratios to the base."""

    summary: Summary
    output_throughput: float  # tokens per second, median of the runs
    output_throughput_min: float
    output_throughput_max: float
    speedup: float | None  # ratio of output throughput, this / base; see `_ratio`
    tpot_speedup: float | None  # ratio of TPOT, base / this
    speedup_ci: Interval | None = None  # 95 %, from pairs of runs
    tpot_speedup_ci: Interval | None = None
    ttft_speedup: float | None = None  # ratio of the runs' median TTFT, base / this
    ttft_speedup_ci: Interval | None = None


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the table. None: not known, or not to be believed."""

    recipe: str
    machine: str
    backend: str
    target: str
    is_base: bool
    load: LoadSpec | None  # None: only quality was measured
    status: Status
    reason: str | None  # of an invalid or failed row
    num_runs: int
    model: ModelFacts | None
    quality: QualityRecord | None
    quantization: QuantizationRecord | None
    speed: Speed | None
    created_at: str
    engine: EngineFigures | None = None
    search: SearchRecord | None = None  # of the load's rate
    stopping: StoppingRecord | None = None
    baseline: str | None = None  # the target that its speed is compared with
    drift: str | None = None  # how its runs became slower or faster, where a check found that
    imported_from: str | None = None  # the tool of others whose file it was read from


def newest(results: Iterable[CellResult]) -> list[CellResult]:
    """Return the newest result of each cell (per machine and backend), in report order.

    Report order: machines and recipes as they first appear, then loads by concurrency and lengths,
    then the base and the targets as the recipe lists them.
    """
    latest: dict[tuple[str, str, str, str], CellResult] = {}
    for result in results:
        key = (machine(result), result.recipe_name, result.cell_id, result.backend.name)
        if key not in latest or result.created_at >= latest[key].created_at:
            latest[key] = result
    groups = list(dict.fromkeys(key[:2] for key in latest))
    ordered = sorted(latest.items(), key=lambda item: (groups.index(item[0][:2]), _order(item[1])))
    return [result for _, result in ordered]


def make_rows(results: Sequence[CellResult], baseline: str | None = None) -> list[Row]:
    """Return one row per result, in the given order (see `newest`).

    Speed-ups are against what `read_baseline` makes of `baseline`, which raises UsageError.
    """
    chosen = read_baseline(baseline, results)
    sessions = Counter(map(_session, results))
    problems = [_problem(result, is_alone=sessions[_session(result)] == 1) for result in results]
    pairs = list(zip(results, problems, strict=True))
    valid = {
        _base_key(result, result.backend.name, result.target): result
        for result, problem in pairs
        if problem is None
    }
    return [
        _row(result, problem, valid.get(_base_key(result, *chosen.of(result))))
        for result, problem in pairs
    ]


def machine(result: CellResult) -> str:
    """Return the words for where a result was measured."""
    environment = result.environment
    if not environment.cores:
        return environment.device
    return f"{environment.device} ({environment.cores} cores, {environment.num_threads} threads)"


def _session(result: CellResult) -> tuple[object, ...]:
    """What results have in common whose runs took turns."""
    return machine(result), result.recipe_name, result.environment.git_sha


def _row(result: CellResult, problem: str | None, base: CellResult | None) -> Row:
    status: Status = "ok"
    speed = None
    if problem is not None:
        status = "failed" if result.summary is None else "invalid"
    elif result.summary is not None:
        speed = _speed(result, result.summary, base)
    return Row(
        recipe=result.recipe_name,
        machine=machine(result),
        backend=f"{result.backend.name} {result.backend.version}",
        target=result.target,
        is_base=result.target == result.base_target,
        load=result.load,
        status=status,
        reason=problem,
        num_runs=len(result.runs),
        model=result.model,
        quality=result.quality,
        quantization=result.quantization,
        speed=speed,
        created_at=result.created_at,
        engine=engine_figures(result) if status == "ok" else None,
        search=result.search,
        stopping=result.stopping,
        baseline=None if base is None else base.target,
        drift=_drift(result),
        imported_from=imported_from(result),
    )


def imported_from(result: CellResult) -> str | None:
    """The tool of others whose file a result was read from; None: it is of llmopt."""
    tool = result.backend.settings.get("imported_from")
    return tool if isinstance(tool, str) else None


def _problem(result: CellResult, *, is_alone: bool) -> str | None:
    """Return why what a cell measures cannot be shown, in one line; None if it can.

    A drift leaves the ratios of cells that took turns as they are: it is said there, not refused.
    """
    if result.error is not None:
        return " ".join(result.error.split()) or "an error without a message"
    if result.load is None:
        is_base = result.target == result.base_target
        return None if is_base or result.quality is not None else "nothing was measured"
    if result.summary is None or not result.summary.run_output_throughput:
        return "nothing was measured"
    failed = [
        check for check in result.validity if not check.passed and (is_alone or check.name != DRIFT)
    ]
    return "; ".join(f"{check.name}: {check.detail}" for check in failed) or None


def _drift(result: CellResult) -> str | None:
    failed = (check for check in result.validity if check.name == DRIFT and not check.passed)
    return next((check.detail for check in failed), None)


def _speed(result: CellResult, summary: Summary, base: CellResult | None) -> Speed:
    runs = summary.run_output_throughput
    reference = None if base is None else base.summary
    speedup = tpot = ttft = _UNKNOWN
    if base is not None and reference is not None:
        speedup = _ratio(runs, reference.run_output_throughput)
        tpot = _ratio(reference.run_tpot_ms, summary.run_tpot_ms)
        ttft = _ratio(_run_ttfts(base), _run_ttfts(result))
    return Speed(
        summary=summary,
        output_throughput=median(runs),
        output_throughput_min=min(runs),
        output_throughput_max=max(runs),
        speedup=speedup[0],
        tpot_speedup=tpot[0],
        speedup_ci=speedup[1],
        tpot_speedup_ci=tpot[1],
        ttft_speedup=ttft[0],
        ttft_speedup_ci=ttft[1],
    )


def _run_ttfts(result: CellResult) -> list[float]:
    """The median TTFT of each run, in seconds; runs without any are left out."""
    found = [[ttft_s(request) for request in run.requests] for run in result.runs]
    known = [[value for value in run if value is not None] for run in found]
    return [median(run) for run in known if run]


def _ratio(numerators: Sequence[float], denominators: Sequence[float]) -> _Ratio:
    """Pair by pair where both have the same runs, which took turns; else of the medians."""
    if not numerators or not denominators or min(*numerators, *denominators) <= 0:
        return _UNKNOWN
    if len(numerators) == len(denominators):
        return paired_ratio(numerators, denominators)
    return median(numerators) / median(denominators), None


def _base_key(result: CellResult, backend: str, target: str) -> _BaseKey:
    return (machine(result), result.recipe_name, backend, target, load_shape(result.load))


def load_shape(load: LoadSpec | None) -> LoadSpec | None:
    """What results have in common that may be compared: all of the load but how long it went on and
    what was asked of its latencies.
    """
    return None if load is None else replace(load, num_requests=0, warmup_requests=0, slo=())


def _load_key(load: LoadSpec | None) -> _LoadKey:
    if load is None:
        return (0, 0, 0, "", 0.0)
    shape = (load.concurrency, load.prompt_tokens, load.output_tokens)
    return (*shape, load.kind, load.rate or 0.0)


def _order(result: CellResult) -> tuple[_LoadKey, int, str]:
    names = [result.base_target, *_target_names(result.recipe)]
    position = names.index(result.target) if result.target in names else len(names)
    return (_load_key(result.load), position, result.target)


def _target_names(recipe: dict[str, object]) -> list[object]:
    targets = recipe.get("targets")
    if not isinstance(targets, list):
        return []
    return [target.get("name") for target in targets if isinstance(target, dict)]
