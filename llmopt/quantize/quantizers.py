"""The method of each scheme.

The only place that knows them all; knows nothing of files.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch

from llmopt.formats.dynamic import DynamicWeight
from llmopt.formats.quantized import QuantSpec
from llmopt.models.config import ModelConfig
from llmopt.quantize.awq_blocks import AwqQuantizer
from llmopt.quantize.awq_scaling import Sequences
from llmopt.quantize.block_task import BlockQuantizer
from llmopt.quantize.codebook import quantize_codebook
from llmopt.quantize.fp8 import quantize_fp8
from llmopt.quantize.int8 import quantize_int8
from llmopt.quantize.options import Job
from llmopt.quantize.override import ModuleSpecs
from llmopt.quantize.rtn import quantize_rtn
from llmopt.quantize.smooth_blocks import SmoothQuantizer
from llmopt.quantize.smoothquant import SmoothQuantOptions
from llmopt.quantize.stored_blocks import StoredQuantizer
from llmopt.quantize.uniform_blocks import GptqQuantizer, RtnQuantizer

_INT8_ROWS = QuantSpec(8, None)
_CODEBOOK_BLOCK = 64


@dataclass(frozen=True, slots=True)
class MethodContext:
    """What methods may need to know of the model and the calibration.

    dtype_of: the dtype in which the source stores the tensor of a name
    sample: the structure of the sample that AWQ judges by; None without calibration data
    """

    config: ModelConfig
    dtype_of: Callable[[str], torch.dtype]
    sample: Sequences | None


def make_quantizer(job: Job, specs: ModuleSpecs, context: MethodContext) -> BlockQuantizer:
    """Return the method that carries out a job on the modules in `specs`."""
    scheme = job.scheme
    match scheme.method:
        case "rtn":
            return RtnQuantizer(specs)
        case "gptq" | "qronos":
            return GptqQuantizer(specs, job.gptq, corrects=scheme.method == "qronos")
        case "awq" | "awq+gptq":
            assert context.sample is not None, "calibration is checked before"
            return AwqQuantizer(
                specs,
                job.awq,
                job.gptq if scheme.uses_gptq else None,
                context.sample,
                context.dtype_of,
                context.config.names,
            )
        case "nf4" | "fp4":
            kind, double_quant = scheme.method, scheme.double_quant
            return StoredQuantizer(
                specs,
                lambda name, weight: quantize_codebook(
                    weight, kind, block_size=_CODEBOOK_BLOCK, double_quant=double_quant, name=name
                ),
                bits=4,
                group_size=_CODEBOOK_BLOCK,
            )
        case "w8a8":
            return SmoothQuantizer(
                specs, SmoothQuantOptions(), context.dtype_of, context.config.names
            )
        case _:
            return _row_quantizer(job, specs)


def _row_quantizer(job: Job, specs: ModuleSpecs) -> BlockQuantizer:
    match job.scheme.method:
        case "int8":
            return StoredQuantizer(
                specs, lambda name, weight: quantize_int8(weight, name=name), 8, None
            )
        case "w8a16":
            return StoredQuantizer(
                specs, lambda name, weight: quantize_rtn(weight, _INT8_ROWS, name=name), 8, None
            )
        case "fp8":
            return StoredQuantizer(
                specs,
                lambda name, weight: DynamicWeight(quantize_fp8(weight, name=name), "fp8"),
                8,
                None,
            )
        case other:
            raise AssertionError(f"{other} has a method of its own")
