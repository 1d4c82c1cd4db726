"""The importance matrix of a model: which inputs of its linear layers are large.

Knows the calibration tokens' way through the model; knows nothing of block types. For quantizers of
others: our own gather the same numbers on the way.
"""

from pathlib import Path

from torch import Tensor

from llmopt.formats.checkpoint import CheckpointReader
from llmopt.models.gguf_export import GgufExport
from llmopt.models.loader import ModelLoader
from llmopt.quantize.block_stream import BlockStream
from llmopt.quantize.calibration import CalibrationData
from llmopt.quantize.checks import check_window
from llmopt.quantize.layout import block_modules
from llmopt.quantize.statistics import Wanted, gather


def importance_matrix(model: Path, calibration: CalibrationData) -> dict[str, Tensor]:
    """Return the mean squared input of each column, float32 [K], of every linear layer in the
    decoder blocks, by the name of its tensor in a GGUF file.

    Raises what opening the model raises, `ModelError` for one that has no GGUF names, `UsageError`
    for windows that are longer than what it reads, and `QuantizationError` for inputs that are not
    finite.
    """
    reader = CheckpointReader(model)
    loader = ModelLoader(reader, dtype="float32")
    check_window(loader.config, calibration)
    architecture = GgufExport(reader.config).architecture
    stream = BlockStream(loader, calibration.num_samples, calibration.sample_tokens)
    hidden = stream.embed(calibration.tokens)
    found: dict[str, Tensor] = {}
    for index in range(loader.config.num_layers):
        modules = block_modules(loader.config, index)
        for place, inputs in stream.walk(loader.block(index), hidden):
            layer = modules[place]
            squares = gather(inputs(), stream.num_tokens, Wanted(), layer.name).mean_square
            for part in layer.parts:
                name = architecture.to_ggml(f"{part}.weight")
                assert name is not None, f"{part} is part of every decoder block"
                found[name] = squares
    return found
