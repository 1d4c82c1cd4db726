"""How the built-in engine serves a target: what a recipe may change of its settings.

Plain data; knows nothing about the engine. The law: what is absent is as the load wants it, so
that targets differ in what they say and in nothing else.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any, Literal

Activations = Literal["auto", "int8", "int16", "bf16"]


@dataclass(frozen=True, slots=True)
class Speculation:
    """How tokens are guessed ahead.

    proposer: ngram, draft:MODEL, self-quantized:4, self-quantized:8 or layers:N
    num_draft_tokens: most of them at once; adaptive: fewer where that was seen to be faster
    synthetic_acceptance: the chance that a guess is taken, whatever the model says: for random
        weights, whose output means nothing anyway
    """

    proposer: str = "ngram"
    num_draft_tokens: int | None = None
    adaptive: bool | None = None
    min_ngram: int | None = None
    max_ngram: int | None = None
    synthetic_acceptance: float | None = None


@dataclass(frozen=True, slots=True)
class EngineSettings:
    """Settings of the engine; what is absent is its default, or follows from the load.

    num_blocks, kv_memory_bytes: of the cache; absent: room for all requests that are served at once
    policy: static serves batch by batch, each request with room for its full length
    prefix_caching: keep what was computed for later requests that begin alike
    attention_window, sink_tokens: what every layer sees and keeps at most; it changes the output
    activations: what bfloat16 activations are rounded to before quantized weights on a CPU (the
        compiled kernels, where there are any), for speed and for quality: int8, int16, bf16 (not
        at all), auto (int8 before weights of fewer than 8 bits, else int16)
    speculation: a proposer, or all about it
    cuda_graphs, async_scheduling: how steps are run on a GPU
    """

    block_size: int | None = None
    num_blocks: int | None = None
    kv_memory_bytes: int | None = None
    kv_dtype: Literal["auto", "fp8", "int8"] | None = None
    max_num_batched_tokens: int | None = None
    max_prefill_chunk: int | None = None
    max_num_seqs: int | None = None
    max_model_len: int | None = None
    policy: Literal["fcfs", "priority", "static"] | None = None
    preemption: Literal["recompute", "swap"] | None = None
    host_memory_bytes: int | None = None
    prefix_caching: bool | None = None
    attention_window: int | None = None
    sink_tokens: int | None = None
    speculation: Speculation | str | None = None
    cuda_graphs: bool | None = None
    async_scheduling: Literal["auto", "on", "off"] | None = None
    activations: Activations | None = None

    @property
    def changes_cache(self) -> bool:
        """Whether tokens are kept in other bytes than the model's, or not all of them."""
        return self.kv_dtype not in (None, "auto") or self.attention_window is not None

    def given(self) -> dict[str, Any]:
        """The settings of the engine itself that are not absent, but for speculation; activations
        are the model's.
        """
        return _given(self, without=("speculation", "activations"))

    def given_speculation(self) -> dict[str, Any] | None:
        """What is said about speculation; None: nothing."""
        if isinstance(self.speculation, str):
            return {"proposer": self.speculation}
        return None if self.speculation is None else _given(self.speculation)


def _given(settings: EngineSettings | Speculation, without: Sequence[str] = ()) -> dict[str, Any]:
    values = {field.name: getattr(settings, field.name) for field in fields(settings)}
    return {name: v for name, v in values.items() if v is not None and name not in without}
