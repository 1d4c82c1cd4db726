"""From a full-precision checkpoint to a quantized one.

Strings the parts together: checks, quantized modules one after the other, files, read-back.
Law: nothing is started that cannot be finished, and no output directory exists until it is
complete.
"""

import time
from collections.abc import Iterator
from pathlib import Path

from llmopt.errors import UsageError
from llmopt.formats.checkpoint import CheckpointReader, CheckpointWriter
from llmopt.models.config import ModelConfig
from llmopt.models.loader import load_model
from llmopt.quantize.layout import check_source
from llmopt.quantize.options import (
    ProgressCallback,
    QuantizedModule,
    QuantizeOptions,
    QuantizeSummary,
)
from llmopt.quantize.output import QuantizedOutput
from llmopt.quantize.rtn import round_modules
from llmopt.quantize.sequential import quantize_blocks


def quantize_checkpoint(
    source: Path,
    out: Path,
    options: QuantizeOptions,
    *,
    on_progress: ProgressCallback | None = None,
) -> QuantizeSummary:
    """Quantize every linear layer of the decoder blocks and write a GPTQ version 1 checkpoint.

    Embeddings, norms and the output head are copied bit for bit. The same source, options and
    calibration give the same bytes. Interrupting leaves no output.

    Raises `QuantizationError` (impossible group size, source quantized already, weights that are
    not finite), `UsageError` (GPTQ without calibration tokens), `CheckpointError`, `ModelError`
    and `OutputError`.
    """
    started = time.perf_counter()
    reader = CheckpointReader(source)
    check_source(reader, options.spec)
    if options.method == "gptq" and options.calibration is None:
        raise UsageError("GPTQ needs calibration tokens", "Give calibration data, or use rtn.")
    num_blocks = ModelConfig.from_hf(reader.config).num_layers
    with CheckpointWriter(out, expected_bytes=reader.num_bytes) as writer:
        output = QuantizedOutput(writer, options.spec)
        for module in _quantized_modules(reader, options):
            output.add(module)
            if on_progress is not None:
                on_progress(module.block, num_blocks, module.record.name, module.record.loss)
        output.copy_rest(reader)
        output.write_configs(reader, options)
        written = writer.seal()
        output.verify(written, reader)
        file_bytes = written.num_bytes
    return QuantizeSummary(
        out=out,
        seconds=time.perf_counter() - started,
        modules=tuple(output.records),
        bits_per_weight=output.bits_per_weight,
        file_bytes=file_bytes,
    )


def _quantized_modules(
    reader: CheckpointReader, options: QuantizeOptions
) -> Iterator[QuantizedModule]:
    if options.method == "rtn":
        return round_modules(reader, options.spec)
    assert options.calibration is not None, "checked before the output was opened"
    model = load_model(reader.path, dtype="float32")
    return quantize_blocks(model, options.calibration, options.spec, options.gptq)
