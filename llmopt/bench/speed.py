"""One run of one cell: a plan, a fresh engine or another runtime, warm-up, load.

Knows nothing about sweeps, journals or quality. The laws: every run begins with an empty cache, or
says that it may not, and every target gets the same requests in the same repeat; but a server that
may have seen them before, in whatever run, gets others of the same lengths, whose variant the run
records (prompts of a file come as they are); this machine is watched only where it is the one that
serves.
"""

import asyncio
import secrets
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace

import torch

from llmopt.backends.builtin import NAME, VERSION, BuiltinBackend
from llmopt.backends.managed_server import OnWait
from llmopt.backends.protocol import Backend
from llmopt.bench.engine_settings import engine_config
from llmopt.bench.foreign_session import ForeignSession
from llmopt.bench.loadgen import IDLE_TIMEOUT_S, run_load
from llmopt.bench.machine_watch import MachineWatch
from llmopt.bench.workload import RunPlan, make_plan
from llmopt.bench.workload_prompts import UserPrompt
from llmopt.bench.workload_spec import LoadPlan
from llmopt.models.decoder import Decoder
from llmopt.recipe.engine import EngineSettings
from llmopt.results.schema import BackendFacts, RunRecord

OnRequest = Callable[[int], None]


@dataclass(frozen=True, slots=True)
class Served:
    """What serves a load: a model in our own engine, or another runtime (`foreign`).

    user_prompts: of a load that has a file of them
    """

    model: Decoder | None
    text_token_ids: Sequence[int]
    user_prompts: Sequence[UserPrompt] = ()
    engine: EngineSettings | None = None
    foreign: ForeignSession | None = None


def backend_facts(plan: LoadPlan | None, engine: EngineSettings | None = None) -> BackendFacts:
    """Our own runtime, the settings that serve a load if there is one, and the activations, which
    quality depends on too.
    """
    settings = {} if plan is None else asdict(engine_config(plan, engine))
    activations = (engine and engine.activations) or "auto"
    return BackendFacts(NAME, VERSION, settings | {"activations": activations})


def measure_run(
    served: Served,
    load: LoadPlan,
    *,
    repeat: int,
    seed: int,
    on_request: OnRequest | None = None,
    on_wait: OnWait | None = None,
) -> RunRecord:
    """Serve the load once; `on_wait` hears how another runtime gets ready.

    Raises `UsageError` when the text does not give the prompts or the model cannot take their
    length, `EngineError` when there is no memory for the cache, `BackendError` when another runtime
    cannot be started, serves nothing or ends. Failed requests do not raise.
    """
    plan = _plan(served, load, repeat, seed)
    if served.foreign is not None:
        return _measure_foreign(
            served.foreign, served, load, plan, repeat, seed, on_request, on_wait
        )
    assert served.model is not None, "a load is served by our engine or by another runtime"
    backend = BuiltinBackend(served.model, engine_config(load, served.engine))
    started_s = time.perf_counter()
    backend.start()
    startup_s = time.perf_counter() - started_s
    watch = MachineWatch(served.model.device)
    try:
        run = _drive(backend, plan, watch, repeat=repeat, seed=seed, on_request=on_request)
    finally:
        backend.stop()
    return replace(run, startup_s=startup_s, cache_emptied=True, prompt_variant=load.variant)


def _plan(served: Served, load: LoadPlan, repeat: int, seed: int) -> RunPlan:
    return make_plan(
        load, served.text_token_ids, seed=seed, repeat=repeat, user_prompts=served.user_prompts
    )


def _measure_foreign(
    session: ForeignSession,
    served: Served,
    load: LoadPlan,
    plan: RunPlan,
    repeat: int,
    seed: int,
    on_request: OnRequest | None,
    on_wait: OnWait | None,
) -> RunRecord:
    target = session.target
    try:
        started_s = time.perf_counter()
        backend = session.acquire(load, served.text_token_ids, on_wait)
        startup_s = time.perf_counter() - started_s
        cache_emptied = session.empty_cache()
        variant = load.variant
        if cache_emptied is None and served.user_prompts:
            cache_emptied = False if repeat else None  # they are what they are, and come again
        elif cache_emptied is None:
            variant = secrets.randbits(32)
            plan = _plan(served, replace(load, variant=variant), repeat, seed)
            session.note(prompts="new in each run, of the lengths that the seed gives")
        device = torch.device(target.device)
        watch = MachineWatch(device, of_children=True) if backend.is_managed else None
        run = _drive(
            backend,
            plan,
            watch,
            repeat=repeat,
            seed=seed,
            on_request=on_request,
            idle_timeout_s=target.spec.request_timeout_s,
        )
        session.finish(run)
    except BaseException:
        session.close()
        raise
    session.release()
    return replace(run, startup_s=startup_s, cache_emptied=cache_emptied, prompt_variant=variant)


def _drive(
    backend: Backend,
    plan: RunPlan,
    watch: MachineWatch | None,
    *,
    repeat: int,
    seed: int,
    on_request: OnRequest | None,
    idle_timeout_s: float = IDLE_TIMEOUT_S,
) -> RunRecord:
    def note(num_ended: int) -> None:
        if watch is not None:
            watch.look()
        if on_request is not None:
            on_request(num_ended)

    async def client() -> RunRecord:
        return await run_load(
            backend,
            plan,
            repeat=repeat,
            seed=seed,
            idle_timeout_s=idle_timeout_s,
            on_warm=None if watch is None else watch.restart,
            on_request=note,
        )

    run = backend.drive(lambda: asyncio.run(client()))
    return run if watch is None else watch.complete(run)
