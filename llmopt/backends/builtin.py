"""llmopt's own engine, in this process, behind the Backend protocol.

Knows nothing about time or load. The law: what it serves is exactly the model that it was given;
every `start` begins with an empty cache and counters at zero.
"""

from collections.abc import AsyncGenerator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing
from dataclasses import asdict

from llmopt import __version__
from llmopt.backends.protocol import GenerationParams, T, TokenEvent
from llmopt.engine.async_engine import AsyncEngine
from llmopt.engine.engine import Engine, EngineConfig
from llmopt.engine.model_runner import DecoderModel
from llmopt.engine.sampling_params import SamplingParams
from llmopt.engine.speculation.stats import SpeculationStats
from llmopt.models.decoder import Decoder
from llmopt.results.attribution import StepGroup, to_counters

NAME = "llmopt"
VERSION = __version__


class BuiltinBackend:
    """Serves a loaded model with an engine of its own."""

    def __init__(self, model: DecoderModel, config: EngineConfig) -> None:
        self._model = model
        self._config = config
        self._engine: Engine | None = None
        self._serving: AsyncEngine | None = None  # while a client is driven

    @property
    def name(self) -> str:
        """Name of the runtime."""
        return NAME

    @property
    def version(self) -> str:
        """Version of llmopt."""
        return VERSION

    @property
    def settings(self) -> dict[str, object]:
        """The engine's limits."""
        return asdict(self._config)

    def start(self) -> None:
        """Allocate the cache.

        Raises `UsageError` or `EngineError` when the limits do not fit the model or the memory.
        """
        assert self._engine is None, "a backend is started once before it is stopped"
        self._engine = Engine(self._model, self._config)

    def drive(self, client: Callable[[], T]) -> T:
        """Run the engine's loop here, where the process computes, and the client in a thread."""
        assert self._engine is not None, "a backend is started before it is used"
        serving = self._serving = AsyncEngine(self._engine)
        try:
            with ThreadPoolExecutor(1, thread_name_prefix="llmopt-client") as pool:
                result = pool.submit(client)
                result.add_done_callback(lambda _: serving.close())
                serving.run()
            return result.result()
        finally:
            self._serving = None

    def stop(self) -> None:
        """Free the engine's cache; the model stays loaded."""
        self._engine = None

    async def stream(
        self, prompt_token_ids: Sequence[int], params: GenerationParams
    ) -> AsyncGenerator[TokenEvent, None]:
        """Serve one request; one event per engine step that gave it a token."""
        assert self._serving is not None, "requests are streamed by a client that is driven"
        outputs = self._serving.generate(
            prompt_token_ids,
            SamplingParams(
                max_tokens=params.max_tokens,
                temperature=params.temperature,
                seed=params.seed,
                ignore_eos=params.ignore_eos,
            ),
        )
        async with aclosing(outputs) as steps:
            async for step in steps:
                yield TokenEvent(
                    num_tokens=len(step.token_ids),
                    finish_reason=step.finish_reason,
                    num_preemptions=step.num_preemptions,
                    num_cached_tokens=step.num_prefix_hit_tokens,
                )

    def stats(self) -> dict[str, float]:
        """The engine's counters, and seconds by stage.

        `peak_kv_bytes`: of the most cache blocks that requests held at once, without those of a
        draft model. Of steps by size: see `StepGroup`. With speculation also how many tokens
        decodes gave, and how many drafted tokens there were, and were taken, at each position of a
        draft.
        """
        engine = self._engine
        assert engine is not None, "a backend is started before it is used"
        snapshot = engine.snapshot()
        layout = engine.plan.layout
        stats: dict[str, float] = asdict(snapshot.stats) | asdict(snapshot.times)
        stats["peak_kv_bytes"] = (
            snapshot.stats.peak_held_slots * layout.block_bytes // layout.block_size
        )
        return stats | self._steps(engine) | _speculation(snapshot.speculation)

    def _steps(self, engine: Engine) -> dict[str, float]:
        layout = engine.plan.layout
        head_bytes = self._model.lm_head.weight_bytes if isinstance(self._model, Decoder) else None
        counters: dict[str, float] = {}
        for (num_tokens, num_requests), bucket in list(engine.runner.steps.buckets.items()):
            group = StepGroup(
                num_steps=bucket.num_steps,
                num_requests=bucket.num_requests,
                num_tokens=bucket.num_tokens,
                num_rows=bucket.num_rows,
                num_head_steps=bucket.num_head_steps,
                num_attended=bucket.num_attended,
                kv_bytes=bucket.num_seen_slots * layout.block_bytes / layout.block_size,
                lm_head_bytes=None if head_bytes is None else bucket.num_head_steps * head_bytes,
                forward_s=bucket.forward_s,
                sample_s=bucket.sample_s,
            )
            counters |= to_counters(num_tokens, num_requests, group)
        return counters


def _speculation(stats: SpeculationStats | None) -> dict[str, float]:
    if stats is None:
        return {}
    counters: dict[str, float] = {
        "num_decodes": stats.num_decodes,
        "num_decode_tokens": stats.num_decode_tokens,
        "num_drafts": stats.num_drafts,
    }
    for name, counts in (
        ("num_drafted_at", stats.drafted_by_position),
        ("num_accepted_at", stats.accepted_by_position),
    ):
        counters |= {f"{name}_{position}": n for position, n in enumerate(counts, start=1)}
    return counters
