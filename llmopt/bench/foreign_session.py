"""A runtime of others that serves the runs of one cell: opened, probed, kept or ended.

Knows what is asked of a runtime and what is noted of it; knows nothing of the order of runs. The
laws: it is asked what our own engine is (context, requests at once, dtype, threads); it is started
for each run with an empty cache, unless it is to be kept, and then the result says so; it is never
kept for prompts that it has served before, if its cache cannot be emptied of them.
"""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import torch

from llmopt.backends.formats import CheckpointFacts
from llmopt.backends.managed_server import OnWait
from llmopt.backends.open_backend import BackendRequest, ForeignBackend, open_backend
from llmopt.backends.probe import probe
from llmopt.bench.foreign import checkpoint_facts
from llmopt.bench.prepare import PreparedTarget
from llmopt.bench.workload_spec import LoadPlan
from llmopt.errors import BackendError
from llmopt.models.resolve import resolve_model
from llmopt.models.tokenizer import Tokenizer
from llmopt.recipe.backends import BackendSpec
from llmopt.recipe.schema import Cell
from llmopt.results.schema import BackendFacts, ModelFacts, RunRecord

LOG_DIRECTORY = "logs"
PROBE_TOKENS = 32
_MARGIN_TOKENS = 16  # of the context, for a token that a server puts before a prompt
_CONTEXT_STEP = 64
_PATIENCE_S = 1.0  # after a failed request, for its server to be seen to have ended


@dataclass(frozen=True, slots=True, kw_only=True)
class ForeignTarget:
    """A checkpoint, and who serves it. Fields as of `BackendRequest`."""

    spec: BackendSpec
    checkpoint: Path
    facts: CheckpointFacts
    model_name: str
    dtype: str
    device: str
    num_threads: int
    log: Path
    tokenizer: Path | None = None
    decode: Callable[[Sequence[int]], str] | None = None

    def request(self, plan: LoadPlan) -> BackendRequest:
        """What is asked of the runtime for a load."""
        return BackendRequest(
            spec=self.spec,
            checkpoint=self.checkpoint,
            facts=self.facts,
            model_name=self.model_name,
            dtype=self.dtype,
            device=self.device,
            num_threads=self.num_threads,
            log=self.log,
            tokenizer=self.tokenizer,
            decode=self.decode,
            context_length=context_length(plan.max_request_tokens, self.facts.max_positions),
            num_parallel=plan.spec.concurrency,
        )


@dataclass(slots=True)
class ForeignSession:
    """The runtime of one cell, from one run to the next.

    keep: leave it alive between runs; only_empty: if its cache can be emptied, else start it anew
    facts: of its last start and run
    """

    target: ForeignTarget
    keep: bool = False
    only_empty: bool = False
    facts: BackendFacts | None = None
    _live: ForeignBackend | None = field(default=None, init=False)
    _plan: LoadPlan | None = field(default=None, init=False)
    _num_runs: int = field(default=0, init=False)  # of the live one

    def acquire(
        self, plan: LoadPlan, text_token_ids: Sequence[int], on_wait: OnWait | None = None
    ) -> ForeignBackend:
        """The runtime, started and probed, or the one that is alive already if it will do.

        Raises UsageError or BackendError when it does not come to serve.
        """
        live = self._live
        if (
            live is not None
            and self._needs(plan) == self._needs(self._plan)
            and not (self.only_empty and live.reset_cache())
        ):
            return live
        self.close()
        backend = open_backend(self.target.request(plan), on_wait)
        self._live, self._plan, self._num_runs = backend, plan, 0
        self.facts = backend.facts()  # of what may not come to serve
        try:
            backend.start()
            findings = probe(backend, text_token_ids[-PROBE_TOKENS:])
        except BaseException as error:
            explained = _explain(backend, error)
            self.close()
            if explained is not None:
                raise explained from None
            raise
        self.facts = replace(backend.facts(), probe=_plain(asdict(findings)))
        return backend

    def empty_cache(self) -> bool | None:
        """See that the next run finds nothing of earlier prompts; None: that is not known."""
        assert self._live is not None, "a runtime is acquired before it is used"
        is_fresh = self._live.is_managed and self._num_runs == 0
        unknown = None if is_fresh else self._live.reset_cache()
        state = "empty at each start" if is_fresh else "emptied before each run"
        self.note(cache=state if unknown is None else f"not known to be empty: {unknown}")
        if unknown is None:
            return True
        return False if self._live.is_managed else None

    def finish(self, run: RunRecord) -> None:
        """Note what the runtime says after a run. Raises BackendError when no request was served,
        or when it has ended.
        """
        assert self._live is not None, "a runtime is acquired before it is used"
        errors = [request.error for request in run.requests if request.error is not None]
        self._live.check(_PATIENCE_S if errors else 0.0)
        if len(errors) == len(run.requests):
            raise self._live.failure(f"served none of {len(errors)} requests ({errors[0]})")
        self._num_runs += 1
        assert self.facts is not None, "what was started has facts"
        tail = self._live.log_tail() if errors else self.facts.log_tail
        metrics = self._live.server_metrics()
        self.facts = replace(self.facts, log_tail=tail, server_metrics=metrics or None)
        self.note(num_servers="one for all runs" if self.keep else "one for each run")

    def release(self) -> None:
        """The run is over: end the runtime, unless it is to be kept."""
        if not self.keep:
            self.close()

    def close(self) -> None:
        """End the runtime; a second call does nothing."""
        live, self._live = self._live, None
        if live is not None:
            live.stop()

    def note(self, **settings: object) -> None:
        """Keep something in the facts, as a setting of what is alive."""
        assert self.facts is not None, "what was started has facts"
        self.facts = replace(self.facts, settings=self.facts.settings | settings)

    def _needs(self, plan: LoadPlan | None) -> BackendRequest | None:
        return None if plan is None else self.target.request(plan)


def open_session(
    cell: Cell,
    prepared: PreparedTarget,
    model: ModelFacts,
    tokenizer: Tokenizer,
    device: str,
    out_dir: Path,
) -> ForeignSession:
    """The session of a cell; nothing is started yet. Raises CheckpointError or ModelError."""
    is_file = prepared.path.suffix == ".gguf"
    target = ForeignTarget(
        spec=cell.backend,
        checkpoint=prepared.path,
        facts=checkpoint_facts(prepared),
        model_name=prepared.target.name,
        dtype=model.compute_dtype,
        device=device,
        num_threads=torch.get_num_threads(),
        log=(out_dir / LOG_DIRECTORY / f"{cell.cell_id}.log").absolute(),
        tokenizer=resolve_model(prepared.target.model) if is_file else None,
        decode=tokenizer.decode,
    )
    return ForeignSession(target)


def context_length(max_request_tokens: int, max_positions: int | None) -> int:
    """Tokens of a request that a runtime must have room for, a little more than the load needs, but
    not more than the model has positions, unless the load does.
    """
    needed = max(max_request_tokens, PROBE_TOKENS) + _MARGIN_TOKENS
    rounded = -(-needed // _CONTEXT_STEP) * _CONTEXT_STEP
    return max(max_request_tokens, min(rounded, max_positions or rounded))


def _explain(backend: ForeignBackend, error: BaseException) -> BackendError | None:
    """An error of the probe with the end of the log; None for what says enough by itself."""
    if not isinstance(error, BackendError) or "log ends" in error.message:
        return None
    return backend.failure(f"does not serve: {error.message}")


def _plain(value: dict[str, object]) -> dict[str, object]:
    return {name: list(v) if isinstance(v, tuple) else v for name, v in value.items()}
