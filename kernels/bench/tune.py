"""Tuning: the fastest configuration of each class of shapes, and the batch at which cuBLAS takes
over, into the file of this GPU (`llmopt_kernels.tuning`).

The law: what is written was measured here, with cold caches; classes that were not reached keep
what the file said of them.
"""

import time
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path

import torch

from bench.more_tunables import other_tunables
from bench.search import search
from bench.shapes import Shapes
from bench.timing import Call, Effort, Timing, time_calls
from bench.tunables import Switch, Tunable, matmul_switches
from llmopt_kernels.tuning import Config, read_tuned, tuned_file, write_tuned

TUNED_KERNELS = (
    "wna16",
    "nf4",
    "w8a8",
    "fp8",
    "moe",
    "paged_attention",
    "store_kv",
    "rotary_store_kv",
    "rms_norm",
    "gated_activation",
    "sampling",
)
_MATMULS = ("wna16", "nf4", "w8a8", "fp8")
_LIMIT = 48  # configurations of a class
_TRIAL = Effort(budget_s=0.05, min_rounds=5, max_rounds=30)
_FINAL = Effort(budget_s=0.3, min_rounds=10)

Found = tuple[str, str, Config]  # kernel, class of shapes, configuration
Say = Callable[[str], None]


def tune(
    kernels: tuple[str, ...], device: torch.device, shapes: Shapes, time_s: float | None, say: Say
) -> Path:
    """Tune kernels, all if none is named, and write the file after each class."""
    path = tuned_file(torch.cuda.get_device_name(device))
    end = None if time_s is None else time.monotonic() + time_s
    for name in kernels or TUNED_KERNELS:
        for kernel, shape_class, config in tuned_configs(name, device, shapes):
            write_tuned(path, merged(read_tuned(path), kernel, shape_class, config))
            say(f"{kernel} {shape_class}: {dict(config)}")
            if end is not None and time.monotonic() > end:
                say("the time is up")
                return path
    return path


@torch.inference_mode()
def tuned_configs(kernel: str, device: torch.device, shapes: Shapes) -> Iterator[Found]:
    """What was found for a kernel, class by class."""
    if kernel in _MATMULS:
        for switch in matmul_switches(kernel, device, shapes):
            yield from _tune_switch(switch, device)
        return
    for tunable in other_tunables(kernel, device, shapes):
        yield kernel, tunable.shape_class, best_config(tunable, device)


def best_config(tunable: Tunable, device: torch.device) -> Config:
    """The fastest configuration of a class; the default, unless another one is really faster."""

    def cost(config: Config) -> float | None:
        timing = time_calls({"": lambda: tunable.launch(config)}, device, _TRIAL)[""]
        return timing.median_s if isinstance(timing, Timing) else None

    best, _ = search(tunable.default, tunable.candidates, cost, limit=_LIMIT)
    if best == tunable.default:
        return best
    calls = {
        "best": lambda: tunable.launch(best),
        "default": lambda: tunable.launch(tunable.default),
    }
    both = time_calls(calls, device, _FINAL)
    found, default = both["best"], both["default"]
    if not isinstance(found, Timing):
        return tunable.default
    slower = isinstance(default, Timing) and default.median_s <= found.median_s
    return tunable.default if slower else best


def merged(
    table: Mapping[str, Mapping[str, Config]], kernel: str, shape_class: str, config: Config
) -> dict[str, dict[str, Config]]:
    """The table with one more configuration."""
    copied = {name: dict(classes) for name, classes in table.items()}
    copied.setdefault(kernel, {})[shape_class] = dict(config)
    return copied


def _tune_switch(switch: Switch, device: torch.device) -> Iterator[Found]:
    """Our configurations up to the batch from which the other way is faster, and that batch."""
    last = 0
    for num_tokens, tunable in sorted(switch.tuned.items()):
        config = best_config(tunable, device)
        calls: dict[str, Call] = {
            "ours": partial(tunable.launch, config),
            "other": switch.other[num_tokens],
        }
        both = time_calls(calls, device, _FINAL)
        ours, other = both["ours"], both["other"]
        if not isinstance(ours, Timing):
            break
        if isinstance(other, Timing) and other.median_s < ours.median_s:
            break
        last = num_tokens
        yield switch.kernel, tunable.shape_class, config
    yield f"{switch.kernel}.switch", switch.shape_class, {"tokens": last}
