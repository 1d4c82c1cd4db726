"""What was served: the size, scheme and identity of a model, from its files and in memory.

Knows nothing about loads or results of runs. The law: sizes come from the files' own headers and
from the tensors in memory, never from what a scheme's name promises.
"""

import hashlib
import json
import math
from collections import defaultdict
from pathlib import Path

from llmopt.formats.checkpoint import CheckpointReader
from llmopt.formats.weights import QuantizedWeights, quantized_weights, scheme
from llmopt.models.llama import LlamaModel
from llmopt.results.schema import ModelFacts

_NUM_SAMPLES = 256  # places of each shard that go into its hash
_SAMPLE_BYTES = 4096


def model_facts(name: str, path: Path, model: LlamaModel, *, note: str | None = None) -> ModelFacts:
    """The facts of a loaded model and of its checkpoint directory. Raises CheckpointError."""
    reader = CheckpointReader(path)
    weights = quantized_weights(reader)
    sizes = _tensor_sizes(reader, weights)
    quantized = [size for key, size in sizes.items() if weights is not None and key in weights]
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
        linear_bits_per_weight=_bits_per_weight(quantized) if quantized else None,
        kernels=model.kernels,
        note=note,
    )


def content_hash(path: Path) -> str:
    """A sha256 that tells checkpoints apart without reading them whole.

    Of config.json, and of each shard its name, size, header and 256 evenly spaced samples of 4 KiB:
    two models of one architecture differ in the samples only. Raises CheckpointError.
    """
    reader = CheckpointReader(path)
    digest = hashlib.sha256(json.dumps(reader.config, sort_keys=True).encode())
    for file in reader.files:
        size = file.stat().st_size
        digest.update(f"{file.name} {size}\n".encode())
        with file.open("rb") as stream:
            header_bytes = 8 + int.from_bytes(stream.read(8), "little")
            stream.seek(0)
            digest.update(stream.read(header_bytes))
            data_bytes = size - header_bytes
            for index in range(_NUM_SAMPLES):
                stream.seek(header_bytes + index * data_bytes // _NUM_SAMPLES)
                digest.update(stream.read(_SAMPLE_BYTES))
    return digest.hexdigest()


def _tensor_sizes(
    reader: CheckpointReader, weights: QuantizedWeights | None
) -> dict[str, tuple[int, int]]:
    """Logical parameters and stored bytes of each tensor, those of a quantized layer together."""
    parameters: dict[str, int] = {}
    num_bytes: dict[str, int] = defaultdict(int)
    for name in reader.names():
        module = None if weights is None else weights.module_of(name)
        elements = math.prod(reader.shape(name))
        num_bytes[module or name] += elements * reader.dtype(name).itemsize
        if weights is None or module is None:
            parameters[name] = elements
        elif module not in parameters:
            parameters[module] = weights.num_weights(module)
    return {key: (parameters[key], num_bytes[key]) for key in num_bytes}


def _bits_per_weight(sizes: list[tuple[int, int]]) -> float:
    parameters = sum(count for count, _ in sizes)
    return 8 * sum(num_bytes for _, num_bytes in sizes) / parameters
