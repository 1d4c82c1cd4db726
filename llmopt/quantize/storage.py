"""Which file format holds a job, and whether it can.

Knows the formats; knows nothing of how codes are chosen.
"""

from collections.abc import Mapping, Sequence
from typing import get_args

from llmopt.errors import QuantizationError
from llmopt.formats.bitsandbytes import CodebookFormat, Int8RowsFormat
from llmopt.formats.dynamic import DynamicSpec, WeightSpec
from llmopt.formats.fp8 import Fp8Spec
from llmopt.formats.overrides import ALL_ALIKE, LM_HEAD
from llmopt.formats.quantized import QuantSpec
from llmopt.formats.weights import FormatName, WeightFormat, choose_format
from llmopt.quantize.gguf_mix import find_mix
from llmopt.quantize.options import FileFormat, Job
from llmopt.quantize.override import ModuleSpecs
from llmopt.quantize.scheme import Scheme

_INT8_ROWS = QuantSpec(8, None)
_FIXED_SPECS: Mapping[str, WeightSpec] = {
    "w8a16": _INT8_ROWS,
    "w8a8": DynamicSpec(_INT8_ROWS, "int8"),
    "fp8": DynamicSpec(Fp8Spec(), "fp8"),
}


def default_format(scheme: Scheme) -> FileFormat:
    """Return the format that most engines read this scheme from."""
    match scheme.method:
        case "nf4" | "fp4" | "int8":
            return "bitsandbytes"
        case "w8a16" | "w8a8" | "fp8":
            return "compressed-tensors"
        case "gguf":
            return "gguf"
        case _:
            assert scheme.spec is not None, "uniform methods have a spec"
            fits_awq = scheme.spec.bits == 4 and scheme.spec.group_size is not None
            return "awq" if scheme.uses_awq and fits_awq else "gptq"


def check_format(job: Job) -> None:
    """Raise `QuantizationError` where the format cannot hold the scheme, whatever the model."""
    if job.scheme.mix is not None:
        find_mix(job.scheme.mix)
    else:
        weight_format(job, {}, (), "float32")


def weight_format(job: Job, specs: ModuleSpecs, modules: Sequence[str], dtype: str) -> WeightFormat:
    """Return the format of a job's checkpoint.

    specs: of the modules that are quantized; modules: all that could be; dtype: the source's.
    Raises `QuantizationError` where the format that was asked for cannot hold them.
    """
    scheme = job.scheme
    fixed = default_format(scheme)
    if scheme.spec is None and job.format != fixed:
        raise QuantizationError(
            f"{scheme.label} cannot be stored as {job.format}", f"Its format is {fixed}."
        )
    if scheme.spec is not None and job.format not in get_args(FormatName):
        raise QuantizationError(
            f"{scheme.label} cannot be stored as {job.format}",
            f"Use one of {', '.join(get_args(FormatName))}.",
        )
    left_alone = [module for module in modules if module not in specs]
    skipped = tuple(dict.fromkeys([*left_alone, LM_HEAD]))
    match scheme.method:
        case "nf4" | "fp4":
            return CodebookFormat(scheme.method, scheme.double_quant, dtype, skipped)
        case "int8":
            return Int8RowsFormat(skipped)
        case _:
            name: FormatName = "compressed-tensors"
            if job.format != "bitsandbytes" and job.format != "gguf":
                name = job.format
            spec = _FIXED_SPECS.get(scheme.method, scheme.spec)
            assert spec is not None, "uniform methods have a spec"
            layers = {module: specs[module] or spec for module in specs}
            alike = set(layers.values()) <= {spec} and LM_HEAD not in layers and not left_alone
            exceptions = {**layers, **dict.fromkeys(left_alone)}
            return choose_format(name, spec, ALL_ALIKE if alike else exceptions)
