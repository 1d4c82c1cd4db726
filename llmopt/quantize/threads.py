"""One thread for long runs of small tensor operations.

Rounding, packing and the column loop make thousands of calls of some microseconds each. With
several threads every call ends in a barrier, and on a machine that is busy with anything else each
barrier waits for a thread that is not scheduled: measured 5 to 60 times slower with 2 threads on 2
busy cores, and less than 1.5 times faster on idle ones. Matrix products keep all threads.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def single_thread() -> Iterator[None]:
    """Run a block, or a decorated function, with one torch thread; restore the number after."""
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(num_threads)
