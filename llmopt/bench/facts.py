"""What was served: the size, scheme and identity of a model, from its files and in memory.

Knows nothing about loads or results of runs. The law: sizes come from the files' own headers and
from the tensors in memory, never from what a scheme's name promises.
"""

import hashlib
import json
import math
from collections import defaultdict
from pathlib import Path

import torch

from llmopt.formats.checkpoint import CheckpointReader
from llmopt.formats.gptq import SUFFIXES, parse_quantization_config
from llmopt.models.llama import LlamaModel
from llmopt.results.schema import ModelFacts

_DTYPE_SCHEMES = {torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16"}
_NUM_SAMPLES = 256  # places of each shard that go into its hash
_SAMPLE_BYTES = 4096


def model_facts(name: str, path: Path, model: LlamaModel, *, note: str | None = None) -> ModelFacts:
    """The facts of a loaded model and of its checkpoint directory. Raises CheckpointError."""
    reader = CheckpointReader(path)
    sizes = _tensor_sizes(reader)
    quantized = [size for prefix, size in sizes.items() if _is_quantized(reader, prefix)]
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


def scheme(reader: CheckpointReader, dtype: torch.dtype) -> str:
    """The scheme's name: "gptq-w4g64" for a quantized checkpoint, else after the dtype: "bf16".

    The method is the one that made the codes: a GPTQ file may hold round-to-nearest weights.
    """
    config = reader.config.get("quantization_config")
    if config is None:
        return _DTYPE_SCHEMES[dtype]
    spec, _ = parse_quantization_config(config)
    method = (config.get("meta") or {}).get("method") or config["quant_method"]
    return spec.label(str(method))


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


def _tensor_sizes(reader: CheckpointReader) -> dict[str, tuple[int, int]]:
    """Logical parameters and stored bytes of each tensor, those of a quantized layer together."""
    parameters: dict[str, int] = defaultdict(int)
    num_bytes: dict[str, int] = defaultdict(int)
    for name in reader.names():
        prefix, _, suffix = name.rpartition(".")
        key = prefix if suffix in SUFFIXES and _is_quantized(reader, prefix) else name
        elements = math.prod(reader.shape(name))
        num_bytes[key] += elements * reader.dtype(name).itemsize
        if key == name:
            parameters[key] += elements
        elif suffix == "qweight":
            parameters[key] += _unpacked_elements(reader, elements)
    return {key: (parameters[key], num_bytes[key]) for key in num_bytes}


def _is_quantized(reader: CheckpointReader, prefix: str) -> bool:
    return f"{prefix}.qweight" in reader


def _unpacked_elements(reader: CheckpointReader, num_words: int) -> int:
    spec, _ = parse_quantization_config(reader.config["quantization_config"])
    return num_words * 32 // spec.bits


def _bits_per_weight(sizes: list[tuple[int, int]]) -> float:
    parameters = sum(count for count, _ in sizes)
    return 8 * sum(num_bytes for _, num_bytes in sizes) / parameters
