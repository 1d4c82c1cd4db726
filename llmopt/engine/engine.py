"""The loop, one step at a time: schedule, move blocks, run the model, record.

Knows nothing about text, threads or who calls it; to be called from one thread at a time.
Law: what a request generates depends on its prompt, parameters and seed, not on what runs beside
it, on chunk sizes, on preemptions or on what is cached (to the rounding of the kernels for
different batch shapes).
Speculation changes no greedy token and no distribution; see `SpeculationConfig.draft_sampling` for
what a seed gives.
"""

import secrets
import time
from collections.abc import Sequence
from copy import deepcopy
from dataclasses import replace

from llmopt.engine.block_pool import BlockPool
from llmopt.engine.block_space import BlockSpace
from llmopt.engine.config import EngineConfig
from llmopt.engine.kv_cache import PagedKV
from llmopt.engine.kv_plan import KVPlan, plan_kv
from llmopt.engine.lookahead import advance, can_look_ahead, needs_host_tokens, settle
from llmopt.engine.model_runner import DecoderModel, ModelRunner, StepResult
from llmopt.engine.pending_step import PendingStep
from llmopt.engine.policies import make_policy
from llmopt.engine.request import Request, StepOutput
from llmopt.engine.sampling_params import SamplingParams
from llmopt.engine.scheduler import Scheduler, SchedulerOutput
from llmopt.engine.snapshot import EngineSnapshot, StageTimes
from llmopt.engine.speculation.make import make_speculator
from llmopt.engine.stats import EngineStats
from llmopt.engine.structured import GrammarCompiler
from llmopt.engine.warm_up import num_padding_blocks, warm_up
from llmopt.errors import EngineError, UsageError
from llmopt.layers.rejection_sampler import Draft
from llmopt.layers.token_logprobs import TokenLogprobs
from llmopt.models.tokenizer import Tokenizer

__all__ = ["Engine", "EngineConfig", "EngineStats"]

_NUM_SEEDS = 2**64


class Engine:
    """Serves requests of token ids with one model.

    Args:
        model: any decoder.
        config: limits; the defaults if left out.
        eos_token_ids: tokens that end a sequence; None takes those of the model's config. A
            tokenizer often knows more of them.
        tokenizer: for outputs that have to match something; they are refused without it.

    Raises:
        UsageError: `max_model_len` is beyond the model's.
        EngineError: the key/value cache does not fit in memory.
    """

    def __init__(
        self,
        model: DecoderModel,
        config: EngineConfig | None = None,
        *,
        eos_token_ids: Sequence[int] | None = None,
        tokenizer: Tokenizer | None = None,
    ) -> None:
        config = config or EngineConfig()
        if eos_token_ids is None:
            eos_token_ids = model.config.eos_token_ids
        self.eos_token_ids = tuple(i for i in eos_token_ids if 0 <= i < model.config.vocab_size)
        self.model = model
        self.speculator, config = make_speculator(model, config)
        self.plan = plan_kv(model.config, config, model.dtype, model.device)
        self.max_model_len = self.plan.max_model_len
        self.kv = PagedKV(
            self.plan.groups,
            [n + num_padding_blocks(model.device) for n in self.plan.num_blocks],
            self.plan.layout,
            model.device,
            self.plan.num_host_blocks,
        )
        self.scheduler = _make_scheduler(config, self.plan)
        grammars = None
        if tokenizer is not None:
            grammars = GrammarCompiler(
                tokenizer,
                vocab_size=model.config.vocab_size,
                eos_token_ids=self.eos_token_ids,
            )
        self.runner = ModelRunner(
            model, self.kv.layers, config.block_size, self.plan.groups, grammars
        )
        warm_up(self.runner, self.plan, config)
        self.stats = EngineStats()
        self.times = StageTimes()
        wanted = config.async_scheduling
        on = model.device.type == "cuda" if wanted == "auto" else wanted == "on"
        self._looks_ahead = on and self.speculator is None
        self._pending: PendingStep | None = None  # launched, and its tokens are not recorded

    @property
    def block_pool(self) -> BlockPool:
        """The blocks of the first layer group, that which sees most; often the only one."""
        return self.scheduler.blocks.groups[0].pool

    def add_request(
        self,
        request_id: str,
        prompt_token_ids: Sequence[int],
        params: SamplingParams,
        arrival_s: float = 0.0,
        *,
        cache_salt: str = "",
    ) -> tuple[str, ...]:
        """Queue a request; several samples of one prompt compute it once.

        Sample i draws from the seed of the parameters + i; an id of its own is `request_id/i`.

        Returns:
            The ids under which outputs come: `request_id`, or one for each sample.

        Raises:
            UsageError: an empty prompt, a token outside the vocabulary, an id in use, or what the
                output has to match is malformed.
            MissingDependencyError: an output has to match something and llguidance is missing.
            EngineError: the request could never be served; says what would fit.
        """
        vocab_size = self.model.config.vocab_size
        if not prompt_token_ids:
            raise UsageError("the prompt is empty", "Give at least one token.")
        _check_tokens("the prompt", prompt_token_ids, vocab_size)
        _check_tokens("stop_token_ids", params.stop_token_ids, vocab_size)
        _check_tokens("logit_bias", tuple(params.logit_bias), vocab_size)
        self.runner.chooser.check(params)
        n = params.num_samples
        first = Request(
            request_id=request_id if n == 1 else f"{request_id}/0",
            token_ids=list(prompt_token_ids),
            num_prompt_tokens=len(prompt_token_ids),
            params=params,
            max_tokens=params.max_tokens,
            seed=secrets.randbits(64) if params.seed is None else params.seed,
            eos_token_ids=self.eos_token_ids,
            arrival_s=arrival_s,
            priority=params.priority,
            cache_salt=cache_salt,
            needs_host_tokens=needs_host_tokens(params),
        )
        samples = [first, *(_fork(first, f"{request_id}/{i}", i) for i in range(1, n))]
        for sample in samples:
            self.scheduler.check_unused(sample.request_id)
        for sample in samples:
            self.scheduler.add(sample)
        return tuple(sample.request_id for sample in samples)

    def step(self) -> list[StepOutput]:
        """Compute one step; return what it added to the requests that got a token.

        With asynchronous scheduling the next step is launched first, and what is returned is of the
        one before: nothing, for the first.

        Raises:
            EngineError: the model computed logits that are not finite numbers.
        """
        if not self.scheduler.has_unfinished():
            self._pending = None
            return []
        return self._step_ahead() if self._looks_ahead else self._step()

    def _step_ahead(self) -> list[StepOutput]:
        """Launch a step if one can be before the tokens of that in flight are known; record those.

        What fails ends the requests whose tokens will never be known.
        """
        pending, self._pending = self._pending, None
        if pending is not None and pending.is_over():
            pending = None
        try:
            if can_look_ahead(self.scheduler):
                self._pending = self._launch(pending)
                return [] if pending is None else self._settle(pending)
            return self._step() if pending is None else self._settle(pending)
        except EngineError:
            self._pending = None
            for request in list(self.scheduler.requests.values()):
                if request.num_pending_tokens:
                    self.abort(request.request_id)
            raise

    def _launch(self, previous: PendingStep | None) -> PendingStep:
        """Start a step before the tokens of the `previous` one are known."""
        scheduler = self.scheduler
        started = time.perf_counter()
        output = scheduler.schedule()
        self.stats.count_step(output, scheduler.running, scheduler.blocks, self.max_model_len)
        self.kv.move(output)
        scheduled = time.perf_counter()
        pending = self.runner.launch(output, previous)
        launched = time.perf_counter()
        advance(scheduler, output)
        self.times.schedule_s += scheduled - started
        self.times.update_s += time.perf_counter() - launched
        return pending

    def _settle(self, pending: PendingStep) -> list[StepOutput]:
        """Wait for the tokens of a step and record them."""
        result = self.runner.finish(pending)
        finished = time.perf_counter()
        sampled = [token_ids[0] for token_ids in result.token_ids]
        step_outputs = settle(self.scheduler, pending.output, sampled)
        self.stats.num_generated_tokens += len(step_outputs)
        times = self.times
        times.forward_s += result.forward_s
        times.sample_s += result.sample_s
        times.update_s += time.perf_counter() - finished
        return step_outputs

    def _step(self) -> list[StepOutput]:
        """Compute a step and wait for it."""
        scheduler = self.scheduler
        started = time.perf_counter()
        speculator = self.speculator
        drafts: dict[str, Draft] = {}
        if speculator is not None:
            drafts = speculator.propose(scheduler.running, scheduler.max_num_batched_tokens)
        drafted = time.perf_counter()
        output = scheduler.schedule({name: draft.token_ids for name, draft in drafts.items()})
        self.stats.count_step(output, scheduler.running, scheduler.blocks, self.max_model_len)
        self.kv.move(output)
        scheduled = time.perf_counter()
        result = self.runner.run(output, drafts)
        computed = time.perf_counter()
        sampled = result.token_ids
        if speculator is not None:
            speculator.record(output, sampled)
        step_outputs = scheduler.update(output, sampled)
        if speculator is not None:
            speculator.forget_finished(step_outputs)
        self.stats.num_accepted_tokens += sum(
            len(token_ids) - 1 for token_ids in sampled if token_ids
        )
        self.stats.num_generated_tokens += sum(len(out.token_ids) for out in step_outputs)
        step_outputs = _add_logprobs(step_outputs, output, result)
        times = self.times
        times.draft_s += drafted - started
        times.schedule_s += scheduled - drafted
        times.forward_s += result.forward_s
        times.sample_s += result.sample_s
        times.update_s += time.perf_counter() - computed
        return step_outputs

    def snapshot(self) -> EngineSnapshot:
        """The engine between two steps; from another thread, while one goes on, nearly so."""
        pools = [group.pool for group in self.scheduler.blocks.groups]
        return EngineSnapshot(
            num_waiting=len(self.scheduler.waiting),
            num_running=len(self.scheduler.running),
            num_used_blocks=sum(pool.num_used_blocks for pool in pools),
            num_blocks=sum(pool.num_blocks for pool in pools),
            stats=replace(self.stats),
            times=replace(self.times),
            speculation=None if self.speculator is None else deepcopy(self.speculator.stats),
        )

    def abort(self, request_id: str) -> bool:
        """Drop a request and free its blocks; False if there is no such unfinished request."""
        if self.speculator is not None:
            self.speculator.forget(request_id)
        return self.scheduler.abort(request_id)

    def has_unfinished(self) -> bool:
        """Whether `step` has anything to do."""
        return self.scheduler.has_unfinished()


def _make_scheduler(config: EngineConfig, plan: KVPlan) -> Scheduler:
    blocks = BlockSpace(
        plan.groups,
        plan.num_blocks,
        block_size=config.block_size,
        max_chunk=config.max_chunk,
        num_host_blocks=plan.num_host_blocks,
        prefix_caching=config.prefix_caching,
    )
    return Scheduler(
        blocks,
        max_num_seqs=config.max_num_seqs,
        max_num_batched_tokens=config.max_num_batched_tokens,
        max_model_len=plan.max_model_len,
        max_prefill_chunk=config.max_prefill_chunk,
        policy=make_policy(config.policy, config.priority_aging_steps),
        preemption=config.preemption,
    )


def _fork(first: Request, request_id: str, number: int) -> Request:
    """Another sample of the prompt of `first`."""
    return replace(
        first,
        request_id=request_id,
        token_ids=list(first.token_ids),
        seed=(first.seed + number) % _NUM_SEEDS,
        parent=first,
        block_keys=[],
        prompt_logprobs=[],
    )


def _add_logprobs(
    step_outputs: list[StepOutput], output: SchedulerOutput, result: StepResult
) -> list[StepOutput]:
    """The outputs of a step with the log-probabilities that were asked for.

    Those of a prompt go with the first token behind it.
    """
    asked = any(item.request.params.prompt_logprobs is not None for item in output.scheduled)
    if not asked and not result.logprobs:
        return step_outputs
    requests = {item.request.request_id: item.request for item in output.scheduled}
    for request_id, logprobs in result.prompt_logprobs.items():
        requests[request_id].prompt_logprobs += logprobs
    changed = []
    for out in step_outputs:
        own = result.logprobs.get(out.request_id, ())[: len(out.token_ids)]
        request = requests[out.request_id]
        of_prompt: tuple[TokenLogprobs, ...] = ()
        if request.num_output_tokens == len(out.token_ids):
            of_prompt = tuple(request.prompt_logprobs)
        changed.append(
            replace(out, logprobs=own, prompt_logprobs=of_prompt) if own or of_prompt else out
        )
    return changed


def _check_tokens(name: str, token_ids: Sequence[int], vocab_size: int) -> None:
    if token_ids and not (min(token_ids) >= 0 and max(token_ids) < vocab_size):
        wrong = next(i for i in token_ids if not 0 <= i < vocab_size)
        raise UsageError(
            f"{name} has token {wrong} and the model knows tokens 0 to {vocab_size - 1}",
            "Tokenize with this model's own tokenizer.",
        )
