"""A step that was launched: its tokens are on the device, and the host has not read them.

Knows nothing about what the step computed or how it was scheduled.
Law: the next step takes the tokens from the device; the host reads them once, later.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from llmopt.engine.request import RequestStatus
from llmopt.engine.scheduler import ScheduledRequest, SchedulerOutput
from llmopt.engine.staging import TokenReadback, to_device
from llmopt.layers.sampler import DeviceTokens


@dataclass(frozen=True, slots=True, eq=False)
class PendingStep:
    """A launched step without drafts.

    Attributes:
        sampling: the requests that sample, as scheduled.
        tokens: one of each of them; None: there are none.
        readback: the same on the way to the host.
        launch_s: seconds that the host took to launch it.
    """

    output: SchedulerOutput
    sampling: tuple[ScheduledRequest, ...]
    tokens: DeviceTokens | None
    readback: TokenReadback | None
    launch_s: float

    def is_over(self) -> bool:
        """Whether nobody waits for it any more."""
        return all(i.request.status is RequestStatus.FINISHED for i in self.output.scheduled)

    def read(self) -> list[int]:
        """Wait for the tokens. Raises EngineError where logits are not finite numbers."""
        return [] if self.readback is None else self.readback.read()


@dataclass(frozen=True, slots=True, eq=False)
class LateTokens:
    """Inputs of a step that only the device knows: row `rows[i]` of the batch is token
    `sources[i]` of `token_ids`.
    """

    rows: Sequence[int]
    sources: Sequence[int]
    token_ids: Tensor  # int64 [R], of the step before

    def put_into(self, input_ids: Tensor) -> None:
        """Write them into input_ids, int64 [T], behind what was put there before."""
        places = to_device(np.array([self.rows, self.sources], dtype=np.int64), input_ids.device)
        input_ids.index_copy_(0, places[0], self.token_ids.index_select(0, places[1]))


def late_tokens(output: SchedulerOutput, previous: PendingStep) -> LateTokens | None:
    """The inputs of a step that are the pending tokens of the step before; None: there are none."""
    known_by = {item.request: index for index, item in enumerate(previous.sampling)}
    rows: list[int] = []
    sources: list[int] = []
    row = -1
    for item in output.scheduled:
        row += item.num_scheduled_tokens
        if item.request.num_pending_tokens:
            rows.append(row)
            sources.append(known_by[item.request])
    if not rows:
        return None
    assert previous.tokens is not None, "a pending token was sampled"
    return LateTokens(rows, sources, previous.tokens.token_ids)
