"""One run of one cell: a plan, a fresh engine, warm-up, load.

Knows nothing about sweeps, journals or quality. The law: every run begins with an empty cache, and
every target gets the same requests in the same repeat.
"""

import asyncio
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace

from llmopt.backends.builtin import NAME, VERSION, BuiltinBackend
from llmopt.bench.engine_settings import engine_config
from llmopt.bench.loadgen import run_load
from llmopt.bench.machine_watch import MachineWatch
from llmopt.bench.slo_search import Probe, RateSearch, search_rate
from llmopt.bench.workload import make_plan
from llmopt.bench.workload_prompts import UserPrompt
from llmopt.bench.workload_spec import LoadPlan
from llmopt.errors import UsageError
from llmopt.models.decoder import Decoder
from llmopt.recipe.engine import EngineSettings
from llmopt.results.schema import BackendFacts, RunRecord


@dataclass(frozen=True, slots=True)
class Served:
    """What a target serves a load with. `user_prompts`: of a load that has a file of them."""

    model: Decoder
    text_token_ids: Sequence[int]
    user_prompts: Sequence[UserPrompt] = ()
    engine: EngineSettings | None = None


def backend_facts(plan: LoadPlan | None, engine: EngineSettings | None = None) -> BackendFacts:
    """The runtime, and the settings that serve a load if there is one."""
    if plan is None:
        return BackendFacts(NAME, VERSION, {})
    return BackendFacts(NAME, VERSION, asdict(engine_config(plan, engine)))


def measure_run(
    served: Served,
    load: LoadPlan,
    *,
    repeat: int,
    seed: int,
    on_request: Callable[[int], None] | None = None,
) -> RunRecord:
    """Serve the load once.

    Raises `UsageError` when the text does not give the prompts or the model cannot take their
    length, `EngineError` when there is no memory for the cache. Failed requests do not raise.
    """
    plan = make_plan(
        load, served.text_token_ids, seed=seed, repeat=repeat, user_prompts=served.user_prompts
    )
    backend = BuiltinBackend(served.model, engine_config(load, served.engine))
    started_s = time.perf_counter()
    backend.start()
    startup_s = time.perf_counter() - started_s
    watch = MachineWatch(served.model.device)

    def note(num_ended: int) -> None:
        watch.look()
        if on_request is not None:
            on_request(num_ended)

    async def client() -> RunRecord:
        return await run_load(
            backend, plan, repeat=repeat, seed=seed, on_warm=watch.restart, on_request=note
        )

    try:
        run = backend.drive(lambda: asyncio.run(client()))
    finally:
        backend.stop()
    return replace(watch.complete(run), startup_s=startup_s, cache_emptied=True)


def find_rate(
    served: Served,
    load: LoadPlan,
    *,
    seed: int,
    repeats: int,
    on_probe: Callable[[Probe], None] | None = None,
) -> RateSearch:
    """Search the highest rate at which the load's SLO holds, from that of requests one by one.

    Raises as `measure_run`, and `UsageError` when no rate keeps the SLO.
    """

    def measure(rate: float) -> list[RunRecord]:
        at_rate = load.at_rate(rate)
        return [measure_run(served, at_rate, repeat=i, seed=seed) for i in range(repeats)]

    num_alone = min(4, load.spec.num_requests)
    alone = replace(load.spec, kind="closed", concurrency=1, num_requests=num_alone)
    run = measure_run(served, replace(load, spec=alone), repeat=0, seed=seed)
    found = search_rate(
        measure,
        load.spec.slo,
        first_rate=num_alone / run.duration_s,
        num_slots=load.spec.concurrency,
        on_probe=on_probe,
    )
    if found.rate is None:
        raise UsageError(
            f"no rate keeps the SLO, down to {found.probes[-1].rate:.3g} requests/s",
            "Allow more time, or ask for shorter requests.",
        )
    return found
