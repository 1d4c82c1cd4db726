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
from llmopt.formats.weights import choose_format
from llmopt.models.config import ModelConfig
from llmopt.models.loader import load_model
from llmopt.quantize.awq_blocks import scale_and_quantize_blocks
from llmopt.quantize.layout import check_source
from llmopt.quantize.options import (
    ProgressCallback,
    QuantizedModule,
    QuantizeOptions,
    QuantizeSummary,
    ReplacedTensor,
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
    """Quantize every linear layer of the decoder blocks and write a checkpoint.

    Embeddings, norms and the output head are copied bit for bit, but for the norms and biases that
    AWQ folds its scales into. The same source, options and calibration give the same bytes.
    Interrupting leaves no output.

    Raises `QuantizationError` (impossible group size, a format that cannot hold the spec, source
    quantized already, weights that are not finite), `UsageError` (no calibration tokens for a
    method that needs them), `CheckpointError`, `ModelError` and `OutputError`.
    """
    started = time.perf_counter()
    weight_format = choose_format(options.format, options.spec)
    reader = CheckpointReader(source)
    check_source(reader, options.spec)
    if options.needs_calibration and options.calibration is None:
        raise UsageError(
            f"{options.method} needs calibration tokens", "Give calibration data, or use rtn."
        )
    num_blocks = ModelConfig.from_hf(reader.config).num_layers
    with CheckpointWriter(out, expected_bytes=reader.num_bytes) as writer:
        output = QuantizedOutput(writer, weight_format)
        for item in _finished_tensors(reader, options):
            if isinstance(item, ReplacedTensor):
                output.replace(item.name, item.tensor)
                continue
            output.add(item)
            if on_progress is not None:
                on_progress(item.block, num_blocks, item.record.name, item.record.loss)
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


def _finished_tensors(
    reader: CheckpointReader, options: QuantizeOptions
) -> Iterator[QuantizedModule | ReplacedTensor]:
    if options.method == "rtn":
        return round_modules(reader, options.spec)
    assert options.calibration is not None, "checked before the output was opened"
    model = load_model(reader.path, dtype="float32")
    if options.uses_awq:
        return scale_and_quantize_blocks(model, options.calibration, options, reader.dtype)
    return quantize_blocks(model, options.calibration, options.spec, options.gptq)
