"""The loop, one step at a time: schedule, run the model, record.

Knows nothing about text, clocks, threads or who calls it; to be called from one thread at a time.
Law: what a request generates depends on its prompt, parameters and seed, not on what runs beside
it, on chunk sizes or on preemptions (to the rounding of the kernels for different batch shapes).
"""

import secrets
from collections.abc import Sequence
from dataclasses import dataclass

from llmopt.engine.block_pool import BlockPool
from llmopt.engine.kv_cache import allocate_kv_cache, choose_num_blocks, kv_block_bytes
from llmopt.engine.model_runner import DecoderModel, ModelRunner
from llmopt.engine.request import Request, SamplingParams, StepOutput
from llmopt.engine.scheduler import Scheduler
from llmopt.errors import UsageError


@dataclass(frozen=True, slots=True)
class EngineConfig:
    """Limits of the runtime.

    Args:
        block_size: tokens per cache block.
        num_blocks: size of the cache; None derives it from `kv_memory_bytes`.
        kv_memory_bytes: memory for the cache; None takes a share of what is free.
        max_num_batched_tokens: token budget of one step; longer prompts are computed in chunks.
        max_num_seqs: most requests in one step.
        max_model_len: most tokens of one request, prompt included; None is the model's own limit.

    Raises:
        UsageError: a value is below 1.
    """

    block_size: int = 16
    num_blocks: int | None = None
    kv_memory_bytes: int | None = None
    max_num_batched_tokens: int = 512
    max_num_seqs: int = 64
    max_model_len: int | None = None

    def __post_init__(self) -> None:
        limits = {
            "block_size": self.block_size,
            "num_blocks": self.num_blocks,
            "kv_memory_bytes": self.kv_memory_bytes,
            "max_num_batched_tokens": self.max_num_batched_tokens,
            "max_num_seqs": self.max_num_seqs,
            "max_model_len": self.max_model_len,
        }
        for name, value in limits.items():
            if value is not None and value < 1:
                raise UsageError(f"{name} is {value}", "Give a whole number of at least 1.")


@dataclass(slots=True)
class EngineStats:
    """Counters since the engine was made.

    `num_scheduled_tokens` counts computed tokens, recomputed ones again.
    """

    num_steps: int = 0
    num_scheduled_tokens: int = 0
    num_generated_tokens: int = 0
    num_preemptions: int = 0
    peak_used_blocks: int = 0


class Engine:
    """Serves requests of token ids with one model.

    Args:
        model: any decoder.
        config: limits; the defaults if left out.
        eos_token_ids: tokens that end a sequence; None takes those of the model's config. A
            tokenizer often knows more of them.

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
    ) -> None:
        config = config or EngineConfig()
        if eos_token_ids is None:
            eos_token_ids = model.config.eos_token_ids
        self.eos_token_ids = tuple(i for i in eos_token_ids if 0 <= i < model.config.vocab_size)
        self.model = model
        self.max_model_len = _limit_model_len(config.max_model_len, model.config.max_model_len)
        self.block_bytes = kv_block_bytes(model.config, config.block_size, model.dtype)
        num_blocks = choose_num_blocks(
            block_bytes=self.block_bytes,
            block_size=config.block_size,
            max_num_seqs=config.max_num_seqs,
            max_model_len=self.max_model_len,
            num_blocks=config.num_blocks,
            kv_memory_bytes=config.kv_memory_bytes,
            device=model.device,
        )
        kv_cache = allocate_kv_cache(
            model.config, num_blocks, config.block_size, model.dtype, model.device
        )
        self.block_pool = BlockPool(num_blocks)
        self.scheduler = Scheduler(
            self.block_pool,
            block_size=config.block_size,
            max_num_seqs=config.max_num_seqs,
            max_num_batched_tokens=config.max_num_batched_tokens,
            max_model_len=self.max_model_len,
        )
        self.runner = ModelRunner(model, kv_cache, config.block_size)
        self.stats = EngineStats()

    def add_request(
        self,
        request_id: str,
        prompt_token_ids: Sequence[int],
        params: SamplingParams,
        arrival_s: float = 0.0,
    ) -> None:
        """Queue a request.

        Raises:
            UsageError: an empty prompt, a token outside the vocabulary, or an id in use.
            EngineError: the request could never be served; says what would fit.
        """
        vocab_size = self.model.config.vocab_size
        if not prompt_token_ids:
            raise UsageError("the prompt is empty", "Give at least one token.")
        _check_tokens("the prompt", prompt_token_ids, vocab_size)
        _check_tokens("stop_token_ids", params.stop_token_ids, vocab_size)
        request = Request(
            request_id=request_id,
            token_ids=list(prompt_token_ids),
            num_prompt_tokens=len(prompt_token_ids),
            params=params,
            max_tokens=params.max_tokens,
            seed=secrets.randbits(64) if params.seed is None else params.seed,
            eos_token_ids=self.eos_token_ids,
            arrival_s=arrival_s,
        )
        self.scheduler.add(request)

    def step(self) -> list[StepOutput]:
        """Compute one step; return what it added to the requests that got a token.

        Raises:
            EngineError: the model computed logits that are not finite numbers.
        """
        if not self.scheduler.has_unfinished():
            return []
        scheduled = self.scheduler.schedule()
        stats = self.stats
        stats.num_steps += 1
        stats.num_scheduled_tokens += scheduled.num_scheduled_tokens
        stats.num_preemptions += scheduled.num_preemptions
        stats.peak_used_blocks = max(stats.peak_used_blocks, self.block_pool.num_used_blocks)
        step_outputs = self.scheduler.update(scheduled, self.runner.run(scheduled))
        stats.num_generated_tokens += len(step_outputs)
        return step_outputs

    def abort(self, request_id: str) -> bool:
        """Drop a request and free its blocks; False if there is no such unfinished request."""
        return self.scheduler.abort(request_id)

    def has_unfinished(self) -> bool:
        """Whether `step` has anything to do."""
        return self.scheduler.has_unfinished()


def _limit_model_len(asked: int | None, model_len: int) -> int:
    if asked is None:
        return model_len
    if asked > model_len:
        raise UsageError(
            f"max_model_len is {asked} and the model's limit is {model_len}",
            f"Give at most {model_len}, or leave it out.",
        )
    return asked


def _check_tokens(name: str, token_ids: Sequence[int], vocab_size: int) -> None:
    if token_ids and not (min(token_ids) >= 0 and max(token_ids) < vocab_size):
        wrong = next(i for i in token_ids if not 0 <= i < vocab_size)
        raise UsageError(
            f"{name} has token {wrong} and the model knows tokens 0 to {vocab_size - 1}",
            "Tokenize with this model's own tokenizer.",
        )
