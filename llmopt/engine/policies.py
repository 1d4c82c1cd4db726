"""In which order requests are served, and when new ones may join.

Knows nothing about blocks, budgets or tensors.
Law: the order of two requests never changes, so none is overtaken forever.
"""

from dataclasses import dataclass
from typing import Literal

PolicyName = Literal["fcfs", "priority", "static"]
AGING_STEPS = 1000


@dataclass(frozen=True, slots=True)
class SchedulingPolicy:
    """How the scheduler chooses.

    by_priority: requests of a smaller priority number go first. A step of waiting counts as
        1 / `aging_steps` of a priority, so nobody who arrives more than
        (difference in priority) * `aging_steps` steps later overtakes: that is what prevents
        starvation, and it makes the rank of a request a constant.
    continuous: requests join whenever there is room. Otherwise a batch is formed and runs until its
        last member ends, and each member reserves the blocks of its full length at its start: how
        a runtime without paging serves, as a baseline for those that do better.
    """

    by_priority: bool = False
    continuous: bool = True
    aging_steps: int = AGING_STEPS

    def rank(self, priority: int, arrival_step: int, arrival_number: int) -> tuple[int, int]:
        """Smaller is served first and preempted last."""
        urgency = priority * self.aging_steps + arrival_step if self.by_priority else 0
        return urgency, arrival_number


def make_policy(name: PolicyName, aging_steps: int = AGING_STEPS) -> SchedulingPolicy:
    """The policy of that name: first come, first served; by priority; or batch by batch."""
    return SchedulingPolicy(name == "priority", name != "static", aging_steps)
