"""Timers and counters that stand in for a model's calls for a while.

Knows nothing about what the calls do. The law: whatever happens while calls are replaced, their
owners are as they were afterwards.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch

from llmopt.bench.module_calls import Call, Function

_Event: Any = torch.cuda.Event  # untyped in torch


@contextmanager
def replaced(
    calls: Sequence[Call], replacement: Callable[[Call, Function], Function]
) -> Iterator[None]:
    """Put a replacement, made from the call and its function, in place of each call."""
    originals: list[tuple[Call, bool, Function]] = []
    try:
        for call in calls:
            function = getattr(call.owner, call.attribute)
            originals.append((call, call.attribute in vars(call.owner), function))
            setattr(call.owner, call.attribute, replacement(call, function))
        yield
    finally:
        for call, is_own, function in reversed(originals):
            if is_own:
                setattr(call.owner, call.attribute, function)
            else:  # a method, which the class still has
                vars(call.owner).pop(call.attribute, None)


@dataclass(slots=True)
class CallTimer:
    """Seconds of the calls, by name. On a GPU those between two events on its stream."""

    device: torch.device
    seconds: dict[str, float] = field(default_factory=dict)
    _events: list[tuple[str, Any, Any]] = field(default_factory=list)

    def timed(self, call: Call, function: Function) -> Function:
        """The function with a timer around it."""
        return (self._by_events if self.device.type == "cuda" else self._by_clock)(call, function)

    def finish(self) -> dict[str, float]:
        """The seconds; waits for a GPU."""
        if self._events:
            torch.cuda.synchronize(self.device)
        for name, before, after in self._events:
            self.seconds[name] = self.seconds.get(name, 0.0) + before.elapsed_time(after) / 1000
        self._events.clear()
        return self.seconds

    def _by_clock(self, call: Call, function: Function) -> Function:
        seconds, name, clock = self.seconds, call.name, time.perf_counter

        def timed(*args: Any, **kwargs: Any) -> Any:
            started = clock()
            result = function(*args, **kwargs)
            seconds[name] = seconds.get(name, 0.0) + clock() - started
            return result

        return timed

    def _by_events(self, call: Call, function: Function) -> Function:
        def timed(*args: Any, **kwargs: Any) -> Any:
            before = _Event(enable_timing=True)
            after = _Event(enable_timing=True)
            before.record()
            result = function(*args, **kwargs)
            after.record()
            self._events.append((call.name, before, after))
            return result

        return timed


@dataclass(slots=True)
class CallWork:
    """What the calls of one name do in a step. `kernels`: each of theirs once."""

    num_calls: int = 0
    num_bytes: float = 0.0
    num_flops: float = 0.0
    ideal_s: float = 0.0
    kernels: dict[str, None] = field(default_factory=dict)


@dataclass(slots=True)
class CallCounter:
    """The work of the calls, by name; `bound` gives the least seconds for bytes and FLOPs."""

    bound: Callable[[float, float], float]
    work: dict[str, CallWork] = field(default_factory=dict)

    def counted(self, call: Call, function: Function) -> Function:
        """The function, whose calls are counted."""

        def counted(*args: Any, **kwargs: Any) -> Any:
            result = function(*args, **kwargs)
            num_bytes, num_flops = call.work(function, args, kwargs, result)
            work = self.work.setdefault(call.name, CallWork())
            work.num_calls += 1
            work.num_bytes += num_bytes
            work.num_flops += num_flops
            work.ideal_s += self.bound(num_bytes, num_flops)
            if call.kernel is not None:
                work.kernels[call.kernel] = None
            return result

        return counted
