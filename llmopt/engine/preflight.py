"""What fits before anything is allocated, and the flag that would help.

Knows nothing about requests that are waiting, or about the command line beyond its flags' names.
Law: the numbers are those of the plan that the engine would make with the same arguments.
"""

from dataclasses import dataclass, replace

import torch

from llmopt.engine.config import EngineConfig
from llmopt.engine.kv_plan import KVPlan, plan_kv
from llmopt.models.config import ModelConfig

_MIB, _GIB = 1 << 20, 1 << 30


@dataclass(frozen=True, slots=True)
class Preflight:
    """What fits.

    Args:
        weight_bytes: of the model.
        kv_bytes: of the whole cache.
        kv_bytes_per_token: of a token that every layer keeps.
        num_kv_tokens: cache slots of the layers that see most.
        request_tokens: the length that the next two are about.
        num_requests: of that length that fit at once, up to the largest batch.
        max_num_seqs: the largest batch.
        advice: one sentence for each flag that lets the largest batch fit; empty if it does.
    """

    weight_bytes: int
    kv_bytes: int
    kv_bytes_per_token: int
    num_kv_tokens: int
    request_tokens: int
    num_requests: int
    max_num_seqs: int
    advice: tuple[str, ...]

    @property
    def lines(self) -> tuple[str, ...]:
        """The same in words."""
        return (
            f"weights {self.weight_bytes / _GIB:.2f} GiB, key/value cache"
            f" {self.kv_bytes / _GIB:.2f} GiB: {self.num_kv_tokens} tokens of"
            f" {self.kv_bytes_per_token / 1024:.1f} KiB",
            f"{self.num_requests} of {self.max_num_seqs} requests of {self.request_tokens} tokens"
            " fit at once",
            *self.advice,
        )


def check_fit(
    model: ModelConfig,
    config: EngineConfig,
    *,
    weight_bytes: int,
    dtype: torch.dtype,
    device: torch.device,
    request_tokens: int | None = None,
    num_requests: int | None = None,
) -> Preflight:
    """What fits when the weights are loaded already (or lie outside of `kv_memory_bytes`).

    request_tokens: prompt and output of one request; None: the longest that the engine admits.
    num_requests: how many there are, if fewer than the largest batch.

    Raises:
        UsageError, EngineError: as `Engine`.
    """
    plan = plan_kv(model, config, dtype, device)
    length = min(request_tokens or plan.max_model_len, plan.max_model_len)
    if num_requests is not None:
        config = replace(config, max_num_seqs=min(num_requests, config.max_num_seqs))
    fitting = _count_requests(plan, config, length)
    advice: tuple[str, ...] = ()
    if fitting < config.max_num_seqs:
        advice = _advise(model, config, plan, length, dtype, device)
    return Preflight(
        weight_bytes=weight_bytes,
        kv_bytes=plan.kv_bytes,
        kv_bytes_per_token=plan.block_bytes // config.block_size,
        num_kv_tokens=plan.num_blocks[0] * config.block_size,
        request_tokens=length,
        num_requests=fitting,
        max_num_seqs=config.max_num_seqs,
        advice=advice,
    )


def _count_requests(plan: KVPlan, config: EngineConfig, length: int) -> int:
    """Requests of `length` tokens that fit at once; the last token needs no slot."""
    fitting = (
        n // max(1, group.max_held_blocks(length - 1, config.max_chunk, config.block_size))
        for group, n in zip(plan.groups, plan.num_blocks, strict=True)
    )
    return min(config.max_num_seqs, *fitting)


def _advise(
    model: ModelConfig,
    config: EngineConfig,
    plan: KVPlan,
    length: int,
    dtype: torch.dtype,
    device: torch.device,
) -> tuple[str, ...]:
    batch = config.max_num_seqs
    needed = plan.layout.block_bytes * sum(
        batch
        * len(group.layers)
        * group.max_held_blocks(length - 1, config.max_chunk, config.block_size)
        for group in plan.groups
    )
    advice = [f"--kv-memory {-(-needed // _MIB)}MiB would hold {batch}"]
    fitting_len = _longest(plan, config, length)
    if fitting_len > 1:
        advice.append(f"--max-model-len {fitting_len} would make {batch} fit")
    if config.kv_dtype == "auto":
        smaller = replace(config, kv_dtype="int8", num_blocks=None, kv_memory_bytes=plan.kv_bytes)
        count = _count_requests(plan_kv(model, smaller, dtype, device), smaller, length)
        if count > _count_requests(plan, config, length):
            advice.append(f"--kv-dtype int8 would make {count} fit in the same memory")
    return tuple(advice)


def _longest(plan: KVPlan, config: EngineConfig, length: int) -> int:
    """The greatest length up to `length` of which the largest batch fits; 0: none."""
    low, high = 0, length
    while low < high:
        middle = (low + high + 1) // 2
        if _count_requests(plan, config, middle) >= config.max_num_seqs:
            low = middle
        else:
            high = middle - 1
    return low
