"""What the compiled forward pass of a model says of its own time, in the names of the calls that it
stands for.

Knows nothing about engines or results. The law: with the profile taken, or the pass left out, the
model is afterwards as it was.
"""

from collections.abc import Iterator
from contextlib import contextmanager

from llmopt.models.decoder import Decoder
from llmopt_kernels.native_step.native import StepProfile

CALL_OF_OPERATION = {
    "embedding": "embedding",
    "norms": "norms",
    "qkv": "qkv",
    "rope and KV store": "rope, KV store",
    "attention": "attention",
    "attention merge": "attention",
    "attention output": "output",
    "gate and up": "gate_up",
    "activation": "activation",
    "down": "down",
    "output head": "lm_head",
}


@contextmanager
def native_seconds(model: Decoder) -> Iterator[dict[str, float]]:
    """Seconds by call of what runs inside, filled in at the end; none without compiled kernels."""
    seconds: dict[str, float] = {}
    if model.native is None:
        yield seconds
        return
    profile = model.native.profile = StepProfile()
    try:
        yield seconds
    finally:
        model.native.profile = None
        for operation, spent_s in profile.seconds.items():
            name = CALL_OF_OPERATION[operation]
            seconds[name] = seconds.get(name, 0.0) + spent_s


@contextmanager
def without_native(model: Decoder) -> Iterator[None]:
    """Every operation of the model is a call of its own inside."""
    native = model.native
    model.__dict__["native"] = None  # where the property keeps its value
    try:
        yield
    finally:
        model.__dict__["native"] = native
