"""How many bytes a run writes: outputs, journal, cached statistics.

Arithmetic on headers; knows nothing of how anything is computed. Estimates are upper bounds within
a few percent.
"""

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass

from llmopt.formats.quantized import QuantSpec
from llmopt.quantize.gguf_job import GgufPlan
from llmopt.quantize.options import Job
from llmopt.quantize.override import ModuleSpecs

_HEADER_BYTES = 1 << 20  # configs, safetensors headers, records
_INT8_ROW = 5  # a float32 scale and a marker per row


@dataclass(frozen=True, slots=True)
class OutputSize:
    """A checkpoint: the quantized modules, and what is copied besides."""

    module_bytes: int
    copied_bytes: int
    num_weights: int

    @property
    def total_bytes(self) -> int:
        """All of it."""
        return self.module_bytes + self.copied_bytes + _HEADER_BYTES

    @property
    def bits_per_weight(self) -> float:
        """Bits on disk of the quantized modules per weight in them."""
        return 8 * self.module_bytes / max(self.num_weights, 1)


def output_size(
    job: Job,
    specs: ModuleSpecs,
    shapes: Mapping[str, tuple[int, int]],
    source_bytes: Mapping[str, int],
) -> OutputSize:
    """Return the size of a job's checkpoint.

    shapes: [O, K] of every module that could be quantized; source_bytes: of every tensor.
    """
    module_bytes = sum(round(_module_bytes(job, specs[name], shapes[name])) for name in specs)
    replaced = {f"{name}.weight" for name in specs}
    copied = sum(size for name, size in source_bytes.items() if name not in replaced)
    num_weights = sum(shapes[name][0] * shapes[name][1] for name in specs)
    return OutputSize(module_bytes, copied, num_weights)


def gguf_size(plan: GgufPlan, modules: Collection[str]) -> OutputSize:
    """Return the size of a GGUF file. modules: the linear layers of the decoder blocks"""
    names = {f"{name}.weight" for name in modules}
    encoded = [name for name in plan.types if name in names and plan.types[name].layout]
    module_bytes = sum(plan.num_bytes(name) for name in encoded)
    total = sum(plan.num_bytes(name) for name in plan.shapes)
    num_weights = sum(math.prod(plan.shapes[name]) for name in encoded)
    return OutputSize(module_bytes, total - module_bytes, num_weights)


def journal_bytes(sizes: list[OutputSize], hidden_bytes: int, num_streams: int) -> int:
    """Return the size of a journal: every block of every job, and hidden states old and new."""
    return sum(size.module_bytes for size in sizes) + 2 * hidden_bytes * num_streams


def _module_bytes(job: Job, spec: QuantSpec | None, shape: tuple[int, int]) -> float:
    rows, columns = shape
    if spec is not None:
        groups = rows * spec.num_groups(columns)
        zeros = groups * spec.bits / 8 if not spec.symmetric or job.format == "gptq" else 0
        g_idx = 4 * columns if job.format == "gptq" else 0
        return rows * columns * spec.bits / 8 + 2 * groups + zeros + g_idx
    match job.scheme.method:
        case "nf4" | "fp4":
            return rows * columns * (0.5 + (0.0164 if job.scheme.double_quant else 0.0625)) + 512
        case _:
            return rows * columns + _INT8_ROW * rows
