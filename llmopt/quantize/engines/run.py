"""Quantizing with an engine of others: checked, run as a process, published when it is whole.

Knows nothing of any one engine. The law: the output appears under its final name only when the
engine has finished and its files open, and an interrupt or a failure leaves nothing but a log.
"""

import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from llmopt.environment.catalogue import find_environment
from llmopt.environment.cuda import has_nvidia_driver
from llmopt.environment.installation import require_python
from llmopt.environment.process import LineCallback
from llmopt.errors import BackendError, QuantizationError, UsageError
from llmopt.formats.checkpoint import CheckpointReader
from llmopt.formats.staging import check_writable, output_errors
from llmopt.formats.weights import quantization_config
from llmopt.quantize.engines.catalogue import find_engine
from llmopt.quantize.engines.engine import Engine
from llmopt.quantize.engines.job import OUTPUT_NAME, write_job
from llmopt.quantize.engines.output import finish_output, is_gguf
from llmopt.quantize.engines.request import EngineRequest, EngineSummary
from llmopt.quantize.engines.worker import WORKERS, run_worker


def quantize_with_engine(
    engine: str, request: EngineRequest, on_line: LineCallback
) -> EngineSummary:
    """Quantize a model with an engine of others, in its own environment.

    `on_line` gets every line that the engine prints. The calibration windows go to it as token
    ids, so it sees what our own methods see; the tokenizer of the source is copied bit for bit.

    Raises `UsageError` (unknown engine, no calibration tokens, not the kind of model that the
    engine takes), `QuantizationError` (a method or setting that it lacks, a source that is
    quantized already), `BackendError` (environment absent, no GPU for an engine that needs one,
    the engine failed), `CheckpointError` and `OutputError`.
    """
    started = time.perf_counter()
    driver = find_engine(engine)
    source_bytes = check_request(driver, request)
    environment = find_environment(driver.environment)
    python = require_python(environment)
    check_writable(request.out, expected_bytes=source_bytes)
    with _staging(request.out) as work:
        write_job(driver, request, WORKERS / driver.worker, work)
        versions = run_worker(driver, environment, python, work, on_line)
        output = work / OUTPUT_NAME
        file_bytes = finish_output(driver, request, versions, output)
        with output_errors(request.out):
            output.rename(request.out)
    return EngineSummary(
        out=request.out,
        engine=engine,
        scheme=request.scheme,
        versions=versions,
        seconds=time.perf_counter() - started,
        file_bytes=file_bytes,
    )


def check_request(engine: Engine, request: EngineRequest) -> int:
    """Refuse what cannot succeed on this machine, and return the size of the source in bytes."""
    engine.check(request)
    if engine.needs_cuda and not has_nvidia_driver():
        raise BackendError(
            f"{engine.name} quantizes on NVIDIA GPUs only, and this machine has no NVIDIA driver",
            "Use it on a machine with a GPU, or choose another engine.",
        )
    if request.method == "gguf":
        if not is_gguf(request.model):
            raise UsageError(
                f"{engine.name} quantizes GGUF files, and {request.model} is none",
                "Convert the model to a GGUF file in float16 first.",
            )
        return request.model.stat().st_size
    reader = CheckpointReader(request.model)
    if quantization_config(reader.config) is not None:
        raise QuantizationError(
            f"{request.model} is quantized already", "Quantize the original model instead."
        )
    return reader.num_bytes


@contextmanager
def _staging(out: Path) -> Iterator[Path]:
    """A hidden directory beside the output, given in full, which is gone afterwards."""
    with output_errors(out):
        work = tempfile.mkdtemp(prefix=f".{out.name}.", suffix=".partial", dir=out.parent)
    try:
        yield Path(work).resolve()
    finally:
        shutil.rmtree(work, ignore_errors=True)
