"""llmopt's own engine, in this process, behind the Backend protocol.

Knows nothing about time or load. The law: what it serves is exactly the model that it was given;
every `start` begins with an empty cache and counters at zero.
"""

from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import asdict

from llmopt import __version__
from llmopt.backends.protocol import GenerationParams, TokenEvent
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
        self._engine: AsyncEngine | None = None

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
        """Allocate the cache and start the engine's thread.

        Raises `UsageError` or `EngineError` when the limits do not fit the model or the memory.
        """
        assert self._engine is None, "a backend is started once before it is stopped"
        self._engine = AsyncEngine(Engine(self._model, self._config))

    def stop(self) -> None:
        """Stop the engine and free its cache; the model stays loaded."""
        if self._engine is not None:
            self._engine.close()
            self._engine = None

    async def stream(
        self, prompt_token_ids: Sequence[int], params: GenerationParams
    ) -> AsyncGenerator[TokenEvent, None]:
        """Serve one request; one event per engine step that gave it a token."""
        outputs = self._running.generate(
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
        return dict(asdict(self._running.engine.stats))

    @property
    def _running(self) -> AsyncEngine:
        assert self._engine is not None, "a backend is started before it is used"
        return self._engine
