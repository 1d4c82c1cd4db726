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
from llmopt.engine.request import SamplingParams

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
                )

    def stats(self) -> dict[str, float]:
        """The engine's counters."""
        assert self._engine is not None, "a backend is started before it is used"
        return dict(asdict(self._engine.stats))
