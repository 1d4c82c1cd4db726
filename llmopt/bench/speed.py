"""One run of one cell: prompts, a fresh engine, warm-up, load.

Knows nothing about sweeps, journals or quality. The law: every run begins with an empty cache, and
every target gets the same prompts in the same repeat.
"""

import asyncio
from collections.abc import Callable, Sequence

from llmopt.backends.builtin import NAME, VERSION, BuiltinBackend
from llmopt.bench.loadgen import run_load
from llmopt.bench.workload import make_prompts
from llmopt.engine.engine import EngineConfig
from llmopt.models.decoder import Decoder
from llmopt.results.schema import BackendFacts, LoadSpec, RunRecord

BLOCK_SIZE = 16


def backend_facts(load: LoadSpec | None) -> BackendFacts:
    """The runtime, and the settings that serve a load if there is one."""
    if load is None:
        return BackendFacts(NAME, VERSION, {})
    config = engine_config(load)
    settings = {name: getattr(config, name) for name in EngineConfig.__dataclass_fields__}
    return BackendFacts(NAME, VERSION, settings)


def engine_config(load: LoadSpec) -> EngineConfig:
    """Room for exactly the requests in flight: no preemption, no memory that is never used."""
    request_tokens = load.prompt_tokens + load.output_tokens
    return EngineConfig(
        block_size=BLOCK_SIZE,
        num_blocks=load.concurrency * -(-request_tokens // BLOCK_SIZE),
        max_num_seqs=load.concurrency,
        max_model_len=request_tokens,
    )


def measure_run(
    model: Decoder,
    text_token_ids: Sequence[int],
    load: LoadSpec,
    *,
    repeat: int,
    seed: int,
    on_request: Callable[[int], None],
) -> RunRecord:
    """Serve the load once.

    Raises `UsageError` when the text does not give the prompts or the model cannot take their
    length, `EngineError` when there is no memory for the cache. Failed requests do not raise.
    """
    prompts = make_prompts(
        text_token_ids,
        num_warmup=load.warmup_requests,
        num_measured=load.num_requests,
        prompt_tokens=load.prompt_tokens,
        seed=(seed, repeat, load.concurrency, load.prompt_tokens),
    )
    backend = BuiltinBackend(model, engine_config(load))
    backend.start()
    try:
        return backend.drive(
            lambda: asyncio.run(
                run_load(backend, load, prompts, repeat=repeat, seed=seed, on_request=on_request)
            )
        )
    finally:
        backend.stop()
