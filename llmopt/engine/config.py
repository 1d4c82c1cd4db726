"""The limits and choices of the runtime.

Knows nothing about models or memory that is free.
Law: a config that exists makes sense by itself; whether it fits a model is the engine's to say.
"""

from dataclasses import dataclass
from typing import Literal

from llmopt.engine.policies import AGING_STEPS, PolicyName
from llmopt.engine.scheduler import Preemption
from llmopt.engine.speculation.config import SpeculationConfig
from llmopt.errors import UsageError

KVDtypeName = Literal["auto", "fp8", "int8"]
AsyncScheduling = Literal["auto", "on", "off"]


@dataclass(frozen=True, slots=True)
class EngineConfig:
    """Limits of the runtime.

    Args:
        block_size: tokens per cache block.
        num_blocks: size of the cache; None derives it from `kv_memory_bytes`. Layers with a window
            get fewer where the largest batch needs no more.
        kv_memory_bytes: memory for the cache; None takes a share of what is free.
        kv_dtype: how keys and values are kept: "auto" (as computed), "fp8" or "int8".
        max_num_batched_tokens: token budget of one step; longer prompts are computed in chunks.
        max_prefill_chunk: most tokens of one prompt in a step; None is the whole budget.
        max_num_seqs: most requests in one step.
        max_model_len: most tokens of one request, prompt included; None is the model's own limit.
        policy: "fcfs", "priority" (smaller numbers first) or "static" (batch by batch, each request
            with the blocks of its full length: the baseline of runtimes without paging).
        priority_aging_steps: steps of waiting that are worth one priority.
        preemption: "recompute", or "swap" to host memory while there is room.
        host_memory_bytes: memory for requests that are swapped out.
        prefix_caching: keep blocks that nobody holds for later requests with the same beginning.
        attention_window: cap on what every layer sees and keeps, for very long contexts; it changes
            what the model computes. None: the model's own windows.
        sink_tokens: the first tokens, which stay visible under `attention_window`.
        speculation: how to guess tokens ahead; None: not at all.
        cuda_graphs: record decode steps as CUDA graphs when the engine is made; on a GPU only.
        async_scheduling: prepare a step while the device computes the one before; "auto": on a GPU.
            Steps that need tokens on the host are not (`lookahead`).

    Raises:
        UsageError: a value is below its minimum, or two of them contradict each other.
    """

    block_size: int = 16
    num_blocks: int | None = None
    kv_memory_bytes: int | None = None
    kv_dtype: KVDtypeName = "auto"
    max_num_batched_tokens: int = 512
    max_prefill_chunk: int | None = None
    max_num_seqs: int = 64
    max_model_len: int | None = None
    policy: PolicyName = "fcfs"
    priority_aging_steps: int = AGING_STEPS
    preemption: Preemption = "recompute"
    host_memory_bytes: int = 1 << 30
    prefix_caching: bool = True
    attention_window: int | None = None
    sink_tokens: int = 0
    speculation: SpeculationConfig | None = None
    cuda_graphs: bool = True
    async_scheduling: AsyncScheduling = "auto"

    def __post_init__(self) -> None:
        _require_at_least(
            1,
            block_size=self.block_size,
            num_blocks=self.num_blocks,
            kv_memory_bytes=self.kv_memory_bytes,
            max_num_batched_tokens=self.max_num_batched_tokens,
            max_prefill_chunk=self.max_prefill_chunk,
            max_num_seqs=self.max_num_seqs,
            max_model_len=self.max_model_len,
            priority_aging_steps=self.priority_aging_steps,
            host_memory_bytes=self.host_memory_bytes,
            attention_window=self.attention_window,
        )
        _require_at_least(0, sink_tokens=self.sink_tokens)
        _require_choice("kv_dtype", self.kv_dtype, "auto", "fp8", "int8")
        _require_choice("policy", self.policy, "fcfs", "priority", "static")
        _require_choice("preemption", self.preemption, "recompute", "swap")
        _require_choice("async_scheduling", self.async_scheduling, "auto", "on", "off")
        if self.sink_tokens and self.attention_window is None:
            raise UsageError(
                f"sink_tokens is {self.sink_tokens} without an attention_window",
                "Give an attention_window, or leave sink_tokens out.",
            )
        if self.policy == "static" and self.attention_window is not None:
            raise UsageError(
                "the static policy keeps every token and attention_window forgets some",
                "Choose another policy, or leave attention_window out.",
            )

    @property
    def max_chunk(self) -> int:
        """Most known tokens of one request that one step computes."""
        return min(
            self.max_num_batched_tokens, self.max_prefill_chunk or self.max_num_batched_tokens
        )


def _require_at_least(minimum: int, **values: int | None) -> None:
    for name, value in values.items():
        if value is not None and value < minimum:
            raise UsageError(f"{name} is {value}", f"Give a whole number of at least {minimum}.")


def _require_choice(name: str, value: str, *choices: str) -> None:
    if value not in choices:
        raise UsageError(f"{name} is {value!r}", f"Give one of {', '.join(choices)}.")
