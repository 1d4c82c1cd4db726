"""What the engine did since it was made, in counters that can be subtracted.

Knows nothing about clocks.
Law: counters only grow; shares are computed from counters, never counted.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from llmopt.engine.block_space import BlockSpace
from llmopt.engine.request import Request
from llmopt.engine.scheduler import SchedulerOutput


@dataclass(slots=True)
class EngineStats:
    """Counters since the engine was made.

    `num_scheduled_tokens` counts computed tokens, recomputed ones again. See `StepCounts` for
    prompts, hits, forks and preemptions. `num_freed_window_blocks` left a window. Of
    `num_draft_tokens` that were computed, `num_accepted_tokens` were taken.

    Slot-steps are cache slots (the keys and values of one token in one layer), summed over steps:
    those of held blocks, those of them that hold nothing, and, for the same requests in a cache of
    contiguous rows that shares nothing: what their tokens take, what rows of
    prompt + `max_tokens` take, and what rows of the model's length take. `peak_held_slots` are the
    slots of the most blocks that were held in a step, and `peak_waste_share` is its largest waste.
    """

    num_steps: int = 0
    num_scheduled_tokens: int = 0
    num_generated_tokens: int = 0
    num_preemptions: int = 0
    num_prompt_tokens: int = 0
    num_prefix_hit_tokens: int = 0
    num_recovered_tokens: int = 0
    num_forks: int = 0
    num_block_copies: int = 0
    num_swapped_out_blocks: int = 0
    num_swapped_in_blocks: int = 0
    num_freed_window_blocks: int = 0
    num_draft_tokens: int = 0
    num_accepted_tokens: int = 0
    peak_used_blocks: int = 0
    peak_held_slots: int = 0
    held_slot_steps: int = 0
    empty_slot_steps: int = 0
    token_slot_steps: int = 0
    max_tokens_slot_steps: int = 0
    model_len_slot_steps: int = 0
    peak_waste_share: float = 0.0

    @property
    def acceptance_rate(self) -> float:
        """Share of drafted tokens that were taken."""
        return self.num_accepted_tokens / max(1, self.num_draft_tokens)

    @property
    def mean_waste_share(self) -> float:
        """Share of the slots of held blocks that hold nothing."""
        return self.empty_slot_steps / max(1, self.held_slot_steps)

    @property
    def max_tokens_waste_share(self) -> float:
        """What contiguous rows of prompt + max_tokens would have wasted."""
        return 1 - self.token_slot_steps / max(1, self.max_tokens_slot_steps)

    @property
    def model_len_waste_share(self) -> float:
        """What contiguous rows of the model's length would have wasted."""
        return 1 - self.token_slot_steps / max(1, self.model_len_slot_steps)

    def count_step(
        self,
        output: SchedulerOutput,
        running: Sequence[Request],
        blocks: BlockSpace,
        max_model_len: int,
    ) -> None:
        """Count a step that was scheduled, with the requests that hold blocks during it."""
        num_scheduled_tokens = output.num_scheduled_tokens
        self.num_steps += 1
        self.num_scheduled_tokens += num_scheduled_tokens
        self.num_draft_tokens += sum(len(item.draft_token_ids) for item in output.scheduled)
        counts = output.counts
        self.num_preemptions += counts.num_preemptions
        self.num_prompt_tokens += counts.num_prompt_tokens
        self.num_prefix_hit_tokens += counts.num_prefix_hit_tokens
        self.num_recovered_tokens += counts.num_recovered_tokens
        self.num_forks += counts.num_forks
        self.num_block_copies += len(output.copies)
        self.num_swapped_out_blocks += len(output.swap_outs)
        self.num_swapped_in_blocks += len(output.swap_ins)
        self.num_freed_window_blocks = blocks.num_freed_window_blocks
        self.peak_used_blocks = max(self.peak_used_blocks, blocks.num_used_blocks)
        self._count_slots(num_scheduled_tokens, running, blocks, max_model_len)

    def _count_slots(
        self, num_new_tokens: int, running: Sequence[Request], blocks: BlockSpace, model_len: int
    ) -> None:
        """The tables of a request have one length, and only the blocks at its end are not full."""
        num_layers = sum(len(group.layers.layers) for group in blocks.groups)
        num_tokens, num_table_blocks, rows = num_new_tokens, 0, 0
        for request in running:
            num_tokens += request.num_computed_tokens
            num_table_blocks += len(request.block_tables[0])
            rows += request.num_prompt_tokens + request.max_tokens
        empty = (num_table_blocks * blocks.block_size - num_tokens) * num_layers
        held = blocks.block_size * sum(
            group.pool.num_used_blocks * len(group.layers.layers) for group in blocks.groups
        )
        self.empty_slot_steps += empty
        self.held_slot_steps += held
        self.peak_held_slots = max(self.peak_held_slots, held)
        self.peak_waste_share = max(self.peak_waste_share, empty / max(1, held))
        self.token_slot_steps += num_tokens * num_layers
        self.max_tokens_slot_steps += rows * num_layers
        self.model_len_slot_steps += len(running) * model_len * num_layers
