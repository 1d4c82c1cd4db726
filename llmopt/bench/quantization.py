"""What a recipe says of a quantization, as a job that the quantizers understand.

Knows nothing about checkpoints that exist already. The law: a scheme or an engine that does not
exist is refused while the recipe is read, with its place in the file.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from llmopt.errors import LLMOptError
from llmopt.formats.checkpoint import CheckpointReader
from llmopt.formats.quantized import QuantSpec
from llmopt.quantize.checks import SourceFacts, check_jobs
from llmopt.quantize.engines.catalogue import find_engine
from llmopt.quantize.gguf_job import check_tokenizer
from llmopt.quantize.layout import check_source
from llmopt.quantize.options import Job
from llmopt.quantize.override import parse_override
from llmopt.quantize.scheme import Scheme, parse_scheme
from llmopt.quantize.storage import check_format, default_format
from llmopt.recipe.check import Problem
from llmopt.recipe.schema import OWN_ENGINE, QuantizeSpec, Recipe


@dataclass(frozen=True, slots=True)
class Quantization:
    """A job, and who does it. Of a job for an engine of others only the scheme counts."""

    job: Job
    engine: str = OWN_ENGINE

    @property
    def is_own(self) -> bool:
        """Whether llmopt itself does it."""
        return self.engine == OWN_ENGINE

    @property
    def label(self) -> str:
        """A name such as `gptq-w4g64` or `gptqmodel-gptq-w4g64`."""
        return self.job.label if self.is_own else f"{self.engine}-{self.job.label}"


def read_quantization(text: QuantizeSpec | str) -> Quantization:
    """Return what a target's `quantize` asks for.

    Raises `QuantizationError` for an unknown scheme, and one that its format cannot hold or its
    engine does not offer, `UsageError` for an unknown engine.
    """
    if isinstance(text, str):
        scheme = parse_scheme(text)
        quantization = Quantization(Job(scheme, default_format(scheme)))
    else:
        quantization = _quantization(text)
    if quantization.is_own:
        check_format(quantization.job)
    else:
        find_engine(quantization.engine).capability(quantization.job.scheme.method)
    return quantization


def check_source_for(job: Job, source: Path) -> None:
    """Raise `QuantizationError`, `ModelError` or `CheckpointError` unless the job can be done to
    this model, as far as its headers tell.
    """
    reader = CheckpointReader(source)
    check_source(reader)
    check_jobs(SourceFacts.of_checkpoint(reader), [job])
    if job.scheme.mix is not None:
        check_tokenizer(reader, job.gguf_pre)


def quantization_problems(recipe: Recipe) -> Iterator[Problem]:
    """Yield what is wrong with the quantizations of a recipe (a rule for `load_recipe`)."""
    for index, target in enumerate(recipe.targets):
        if target.quantize is not None and target.dummy_config is None:
            try:
                read_quantization(target.quantize)
            except LLMOptError as error:
                yield Problem(("targets", index, "quantize"), error.message, error.remedy)


def _quantization(spec: QuantizeSpec) -> Quantization:
    uniform = None
    if spec.bits is not None:
        uniform = QuantSpec(spec.bits, spec.group_size, spec.symmetric)
    scheme = Scheme(spec.method, uniform, spec.double_quant, spec.mix)
    job = Job(
        scheme,
        spec.format or default_format(scheme),
        propagate=spec.propagate,
        overrides=tuple(parse_override(text) for text in spec.overrides),
    )
    return Quantization(job, spec.engine)
