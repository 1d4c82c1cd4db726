"""Rows: what a result file says about one target under one load, ready to print.

Knows nothing about layout. The law: a number that should not be believed is not in a row. A cell
that failed, or failed a validity check, keeps its size and quality, says why, and has no speed;
and a speed-up exists only against the base under the same recipe, load, backend and machine.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Literal

from llmopt.results.schema import (
    CellResult,
    LoadSpec,
    ModelFacts,
    QualityRecord,
    QuantizationRecord,
    Summary,
)

Status = Literal["ok", "invalid", "failed"]

_BaseKey = tuple[str, str, str, int, int, int]


@dataclass(frozen=True, slots=True)
class Speed:
    """The speed of a row: its summary, the spread of its runs, and the ratios to the base."""

    summary: Summary
    output_throughput: float  # tokens per second, median of the runs
    output_throughput_min: float
    output_throughput_max: float
    speedup: float | None  # ratio of the medians of output throughput, this / base
    tpot_speedup: float | None  # ratio of the medians of TPOT, base / this


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


def make_rows(results: Sequence[CellResult]) -> list[Row]:
    """Return one row per result, in the given order (see `newest`)."""
    bases = {
        _base_key(result): result.summary
        for result in results
        if result.target == result.base_target and _problem(result) is None
    }
    return [_row(result, bases.get(_base_key(result))) for result in results]


def machine(result: CellResult) -> str:
    """Return the words for where a result was measured."""
    environment = result.environment
    return f"{environment.device} ({environment.cores} cores, {environment.num_threads} threads)"


def _row(result: CellResult, base: Summary | None) -> Row:
    problem = _problem(result)
    status: Status = "ok"
    speed = None
    if problem is not None:
        status = "failed" if result.summary is None else "invalid"
    elif result.summary is not None:
        speed = _speed(result.summary, base)
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
    )


def _problem(result: CellResult) -> str | None:
    """Return why what a cell measures cannot be shown, in one line; None if it can."""
    if result.error is not None:
        return " ".join(result.error.split()) or "an error without a message"
    if result.load is None:
        is_base = result.target == result.base_target
        return None if is_base or result.quality is not None else "nothing was measured"
    if result.summary is None or not result.summary.run_output_throughput:
        return "nothing was measured"
    failed = [f"{check.name}: {check.detail}" for check in result.validity if not check.passed]
    return "; ".join(failed) or None


def _speed(summary: Summary, base: Summary | None) -> Speed:
    runs = summary.run_output_throughput
    return Speed(
        summary=summary,
        output_throughput=median(runs),
        output_throughput_min=min(runs),
        output_throughput_max=max(runs),
        speedup=_ratio(runs, base.run_output_throughput) if base else None,
        tpot_speedup=_ratio(base.run_tpot_ms, summary.run_tpot_ms) if base else None,
    )


def _ratio(numerators: Sequence[float], denominators: Sequence[float]) -> float | None:
    if not numerators or not denominators or median(denominators) == 0:
        return None
    return median(numerators) / median(denominators)


def _base_key(result: CellResult) -> _BaseKey:
    return (machine(result), result.recipe_name, result.backend.name, *_lengths(result.load))


def _lengths(load: LoadSpec | None) -> tuple[int, int, int]:
    return (0, 0, 0) if load is None else (load.concurrency, load.prompt_tokens, load.output_tokens)


def _order(result: CellResult) -> tuple[int, int, int, int, str]:
    names = [result.base_target, *_target_names(result.recipe)]
    position = names.index(result.target) if result.target in names else len(names)
    return (*_lengths(result.load), position, result.target)


def _target_names(recipe: dict[str, object]) -> list[object]:
    targets = recipe.get("targets")
    if not isinstance(targets, list):
        return []
    return [target.get("name") for target in targets if isinstance(target, dict)]
