"""Results of simulated sessions, with the noise that real machines have."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta

import numpy as np
import pytest

from llmopt.results.schema import (
    BackendFacts,
    Ceilings,
    CellResult,
    Environment,
    LoadSpec,
    ModelFacts,
    NoiseFloor,
    QualityRecord,
    RequestRecord,
    RunRecord,
    ValidityCheck,
    WindowSums,
)

START = datetime(2026, 11, 22, 10, tzinfo=UTC)
SHA = {"old": "0" * 40, "new": "1" * 40}
LOAD = LoadSpec(
    concurrency=4, num_requests=8, prompt_tokens=128, output_tokens=32, warmup_requests=1
)
WINDOWS = 16


@dataclass(frozen=True)
class Machine:
    """Relative noise: of a request, of a run, a share of runs slowed down, a drift per session."""

    request: float = 0.03
    run: float = 0.03
    slow_share: float = 0.05
    slow_by: float = 0.15
    drift: float = 0.05


def make_run(repeat: int, at: datetime, factor: float, rng: np.random.Generator, noise: float):
    """Eight requests of 32 tokens: TTFT about 100 ms, TPOT about 20 ms, times `factor`."""
    ttfts = 0.1 * factor * np.exp(noise * rng.standard_normal(8))
    tpots = 0.02 * factor * np.exp(noise * rng.standard_normal(8))
    requests = tuple(
        RequestRecord(
            request_id=str(index),
            num_prompt_tokens=128,
            num_output_tokens=32,
            scheduled_s=0.0,
            sent_s=0.0,
            first_token_s=float(ttft),
            last_token_s=float(ttft + 31 * tpot),
            done_s=float(ttft + 31 * tpot),
            token_times_s=(float(ttft), float(ttft + 31 * tpot)),
            token_counts=(1, 31),
            finish_reason="length",
        )
        for index, (ttft, tpot) in enumerate(zip(ttfts, tpots, strict=True))
    )
    duration_s = float((ttfts + 31 * tpots).sum() / 4)
    return RunRecord(repeat, at.isoformat(), 0, duration_s, requests, {})


def make_quality(kld: np.ndarray, log_ratio: np.ndarray) -> QualityRecord:
    """A record of windows of 500 tokens with these mean KLDs and log ratios, noise floor 0.0004."""
    mean, ratio = float(kld.mean()), float(np.exp(log_ratio.mean()))
    sums = tuple(
        WindowSums(500, 500 * float(a), 500 * float(b), int(500 * (0.9 - a)))
        for a, b in zip(kld, log_ratio, strict=True)
    )
    return QualityRecord(
        base_name="m",
        base_scheme="fp32",
        text_name="t",
        text_sha256="ab" * 32,
        protocol="windows of 501",
        window=501,
        num_windows=len(sums),
        num_tokens=500 * len(sums),
        kld_mean=mean,
        kld_mean_ci=(0.9 * mean, 1.1 * mean),
        kld_median=mean,
        kld_p99=mean,
        kld_max=mean,
        top1_agreement=0.9 - mean,
        top1_agreement_ci=(0.88 - mean, 0.92 - mean),
        ppl=20 * ratio,
        base_ppl=20.0,
        ppl_ratio=ratio,
        ppl_ratio_ci=(0.99 * ratio, 1.01 * ratio),
        noise=NoiseFloor("bf16", 0.0004, (0.0003, 0.0005), 1.0, (0.999, 1.001)),
        window_sums=sums,
    )


def make_cell(side: str, target: str, runs, quality=None, **changes) -> CellResult:
    result = CellResult(
        cell_id=f"sim-{target}-c4",
        recipe_name="sim",
        recipe={"name": "sim"},
        target=target,
        base_target="base",
        model=ModelFacts("m", "0" * 64, "A", target, "float32", 10, 1000, 1000, 4.5, 4.25, ("k",)),
        backend=BackendFacts("llmopt", "0.1.0", {}),
        load=LOAD,
        environment=Environment(
            "CPU", 2, 8 * 10**9, "Linux", "3.11", "2.13", "5", "0.1.0", SHA[side], False, 2
        ),
        ceilings=Ceilings({"float32": 1e11}, 1e10, 1.1e10, START.isoformat(), 2, "cpu"),
        cost=None,
        runs=tuple(runs),
        quality=quality,
        validity=(ValidityCheck("requests-served", True, "all"),),
        summary=None,
        error=None,
        created_at=START.isoformat(),
    )
    return replace(result, **changes)


def simulate(
    seed: int,
    *,
    pairs: int = 10,
    slowdown: float = 1.0,
    kld_factor: float = 1.0,
    machine: Machine | None = None,
    interleaved: bool = True,
    targets: tuple[str, ...] = ("base", "w4"),
) -> tuple[list[CellResult], list[CellResult]]:
    """Old and new results of one session: by turns, ABBA, or one side after the other."""
    rng = np.random.default_rng(seed)
    machine = machine or Machine()
    order = [
        side for i in range(pairs) for side in (("old", "new") if i % 2 == 0 else ("new", "old"))
    ]
    if not interleaved:
        order.sort(reverse=True)
    runs: dict[tuple[str, str], list[RunRecord]] = {}
    for index, side in enumerate(order):
        factor = np.exp(machine.drift * index / len(order)) * (slowdown if side == "new" else 1.0)
        for number, target in enumerate(targets):
            slow = 1 + machine.slow_by * (rng.random() < machine.slow_share)
            shared = factor * slow * np.exp(machine.run * rng.standard_normal())
            of = runs.setdefault((side, target), [])
            at = START + timedelta(seconds=20 * index + 5 * number)
            of.append(make_run(len(of), at, shared, rng, machine.request))
    kld = 0.05 * np.exp(0.3 * rng.standard_normal(WINDOWS))
    log_ratio = 0.04 + 0.02 * rng.standard_normal(WINDOWS)
    changed = kld * (1 + (kld_factor - 1) * np.exp(0.5 * rng.standard_normal(WINDOWS) - 0.125))
    sides = []
    for side in ("old", "new"):
        now = changed if side == "new" and kld_factor != 1 else kld
        quality = {"base": None, "w4": make_quality(now, log_ratio + (now - kld) / 2)}
        sides.append([make_cell(side, t, runs[side, t], quality[t]) for t in targets])
    return sides[0], sides[1]


@pytest.fixture(scope="session")
def session() -> Callable[..., tuple[list[CellResult], list[CellResult]]]:
    """Simulate a session: `session(seed, slowdown=1.1)` gives old and new results."""
    return simulate


@pytest.fixture(scope="session")
def cell() -> Callable[..., CellResult]:
    """Make one result: `cell(side, target, runs, quality, **changes)`."""
    return make_cell


@pytest.fixture(scope="session")
def machine() -> Callable[..., Machine]:
    """Describe a machine: `machine(run=0.01)` has calmer runs than usual."""
    return Machine
