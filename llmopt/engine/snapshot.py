"""The engine at one moment: its queue, its memory, its counters, and where its time went.

Knows nothing about how any of it comes about.
Law: a snapshot does not change; two of them can be subtracted, counter by counter.
"""

from dataclasses import dataclass

from llmopt.engine.speculation.stats import SpeculationStats
from llmopt.engine.stats import EngineStats


@dataclass(slots=True)
class StageTimes:
    """Seconds since the engine was made, by stage of its steps.

    `draft_s`: proposing; `schedule_s`: choosing tokens and moving blocks; `forward_s`: tensors in,
    model, logits out; `sample_s`: from logits to tokens; `update_s`: recording. On a GPU the work
    of `forward_s` is only started there and waited for in `sample_s`.
    """

    draft_s: float = 0.0
    schedule_s: float = 0.0
    forward_s: float = 0.0
    sample_s: float = 0.0
    update_s: float = 0.0

    @property
    def total_s(self) -> float:
        """Of all stages."""
        return self.draft_s + self.schedule_s + self.forward_s + self.sample_s + self.update_s


@dataclass(frozen=True, slots=True)
class EngineSnapshot:
    """What can be known of an engine between two steps.

    Blocks are those of all layer groups. `speculation` is None without it.
    """

    num_waiting: int
    num_running: int
    num_used_blocks: int
    num_blocks: int
    stats: EngineStats
    times: StageTimes
    speculation: SpeculationStats | None = None

    @property
    def kv_use(self) -> float:
        """Share of the cache's blocks that have a holder."""
        return self.num_used_blocks / self.num_blocks
