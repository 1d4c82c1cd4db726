"""The processors that this process and all that it starts may run on, and its threads.

Knows nothing of what is computed. The law: both are said before a library that computes is loaded,
since such libraries make their threads once.
"""

import os
import re

from llmopt.errors import UsageError

_RANGES = re.compile(r"\d+(-\d+)?(,\d+(-\d+)?)*")


def usable_processors() -> tuple[int, ...]:
    """Numbers of the processors that this process may run on, ascending."""
    if hasattr(os, "sched_getaffinity"):
        return tuple(sorted(os.sched_getaffinity(0)))
    return tuple(range(os.cpu_count() or 1))


def parse_processors(text: str) -> tuple[int, ...]:
    """Numbers such as "0-3,8", ascending. Raises UsageError."""
    if not _RANGES.fullmatch(text):
        raise UsageError(f"{text!r} names no processors", "Write such as 0-3,8.")
    found: set[int] = set()
    for part in text.split(","):
        first, _, last = part.partition("-")
        found.update(range(int(first), int(last or first) + 1))
    if not found:
        raise UsageError(f"{text!r} names no processors", "Write ranges upwards, such as 0-3.")
    return tuple(sorted(found))


def run_on(processors: tuple[int, ...]) -> None:
    """Keep this process, and all that it starts from now on, on these. Raises UsageError."""
    usable = usable_processors()
    if missing := sorted(set(processors) - set(usable)):
        raise UsageError(
            f"this process may not run on processor {', '.join(map(str, missing))}",
            f"It may on {', '.join(map(str, usable))}.",
        )
    if not hasattr(os, "sched_setaffinity"):
        raise UsageError(
            "this system cannot keep a process on some processors", "Leave --cpus out."
        )
    os.sched_setaffinity(0, processors)


def compute_with(num_threads: int) -> None:
    """Compute with so many threads, here and in the processes that are started from now on."""
    os.environ["OMP_NUM_THREADS"] = str(num_threads)
