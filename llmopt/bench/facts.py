"""What was served: the size, scheme and identity of a model, from its files and in memory.

Knows nothing about loads or results of runs. The law: sizes come from the files' own headers and
from the tensors in memory, never from what a scheme's name promises.
"""

import hashlib
import json
import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path

from llmopt.formats.gguf import GgufWeights
from llmopt.formats.weights import Checkpoint, QuantizedWeights, quantized_weights, scheme
from llmopt.models.decoder import Decoder
from llmopt.models.loader import open_checkpoint
from llmopt.quantize.layout import model_families
from llmopt.results.schema import ModelFacts

_NUM_SAMPLES = 256  # places of each shard that go into its hash
_SAMPLE_BYTES = 4096


def model_facts(name: str, path: Path, model: Decoder, *, note: str | None = None) -> ModelFacts:
    """The facts of a loaded model and of its directory or GGUF file. Raises CheckpointError."""
    reader = open_checkpoint(path)
    weights = quantized_weights(reader)
    sizes = tensor_sizes(reader, weights)
    linears = [name for family in model_families(model.config) for name in family]
    num_parameters = sum(parameters for parameters, _ in sizes.values())
    return ModelFacts(
        name=name,
        path_hash=content_hash(path),
        architecture=model.config.architecture,
        scheme=scheme(reader, model.dtype),
        compute_dtype=str(model.dtype).removeprefix("torch."),
        num_parameters=num_parameters,
        file_bytes=reader.num_bytes,
        weight_bytes=model.weight_bytes,
        bits_per_weight=8 * sum(num_bytes for _, num_bytes in sizes.values()) / num_parameters,
        linear_bits_per_weight=None if weights is None else _bits_per_weight(linears, sizes),
        kernels=model.kernels,
        note=note,
    )


def content_hash(path: Path) -> str:
    """A sha256 that tells checkpoints apart without reading them whole.

    Of the config, and of each file its name, size, header and 256 evenly spaced samples of 4 KiB:
    two models of one architecture differ in the samples only. Raises CheckpointError.
    """
    reader = open_checkpoint(path)
    digest = hashlib.sha256(json.dumps(reader.config, sort_keys=True).encode())
    for file in reader.files:
        size = file.stat().st_size
        digest.update(f"{file.name} {size}\n".encode())
        header_bytes = reader.header_bytes(file)
        with file.open("rb") as stream:
            digest.update(stream.read(header_bytes))
            data_bytes = size - header_bytes
            for index in range(_NUM_SAMPLES):
                stream.seek(header_bytes + index * data_bytes // _NUM_SAMPLES)
                digest.update(stream.read(_SAMPLE_BYTES))
    return digest.hexdigest()


def tensor_sizes(
    reader: Checkpoint, weights: QuantizedWeights | GgufWeights | None
) -> dict[str, tuple[int, int]]:
    """Logical parameters and stored bytes of each tensor, those of a quantized layer together."""
    parameters: dict[str, int] = {}
    num_bytes: dict[str, int] = defaultdict(int)
    for name in reader.names():
        module = None if weights is None else weights.module_of(name)
        num_bytes[module or name] += reader.tensor_bytes(name)
        if weights is None or module is None:
            parameters[name] = math.prod(reader.shape(name))
        elif module not in parameters:
            parameters[module] = weights.num_weights(module)
    return {key: (parameters[key], num_bytes[key]) for key in num_bytes}


def _bits_per_weight(modules: Sequence[str], sizes: Mapping[str, tuple[int, int]]) -> float:
    """Of some layers, whether they are quantized or left in full precision."""
    found = [sizes.get(name) or sizes[f"{name}.weight"] for name in modules]
    parameters = sum(count for count, _ in found)
    return 8 * sum(num_bytes for _, num_bytes in found) / parameters
