"""The quantized checkpoint on disk: written, then read back and compared.

Knows formats and files; knows nothing of how codes were chosen.
Law: what is reported as written was read again from the disk and is what was intended.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from llmopt.errors import CheckpointError, OutputError
from llmopt.formats.checkpoint import CheckpointReader, CheckpointWriter, read_json
from llmopt.formats.staging import output_errors
from llmopt.formats.weights import WeightFormat, quantized_weights
from llmopt.quantize.packing import PackedBlock, tensor_bytes, tensor_digest, weight_digest
from llmopt.quantize.threads import single_thread

RECORD_FILE = "quantization.json"  # what was made of what: the same for the same inputs
RUN_FILE = "quantization-run.json"  # how it went this time: seconds, memory, versions


def write_checkpoint(
    writer: CheckpointWriter,
    weight_format: WeightFormat,
    method: str,
    source: CheckpointReader,
    blocks: Sequence[PackedBlock],
) -> None:
    """Write the tensors of all blocks, the rest of the source bit for bit, and the configs; read
    everything again and raise `OutputError` unless it is what was intended.
    """
    for block in blocks:
        for name, tensor in block.tensors.items():
            writer.add(name, tensor)
    for name in _copied_names(source, blocks):
        writer.add(name, source.tensor(name))
    writer.copy_tokenizer(source.path)
    config = weight_format.config(method)
    writer.set_config({**source.config, "quantization_config": config})
    if weight_format.config_file is not None:
        writer.add_json(weight_format.config_file, config)
    verify(writer.seal(), source, blocks)


@single_thread()
def verify(
    written: CheckpointReader, source: CheckpointReader, blocks: Sequence[PackedBlock]
) -> None:
    """Raise `OutputError` unless a checkpoint holds these blocks and the rest of its source."""
    weights = quantized_weights(written)
    assert weights is not None, "the config was written"
    for module in (module for block in blocks for module in block.modules):
        name = module.record.name
        if weight_digest(weights.weight(name)) != module.digest:
            raise _differs(written.path, name)
    for name, digest in ((n, d) for block in blocks for n, d in block.replaced.items()):
        if tensor_digest(written.tensor(name)) != digest:
            raise _differs(written.path, name)
    for name in _copied_names(source, blocks):
        found, expected = written.tensor(name), source.tensor(name)
        if not torch.equal(tensor_bytes(found), tensor_bytes(expected)):
            raise _differs(written.path, name)


def published_fingerprint(out: Path) -> str | None:
    """Return the fingerprint that a checkpoint was made under; None if there is none."""
    try:
        return str(read_json(out / RECORD_FILE).get("fingerprint"))
    except CheckpointError:
        return None


def weight_bytes(directory: Path) -> int:
    """Return the size of all weight files of a checkpoint."""
    files = (f for f in directory.iterdir() if f.suffix in (".safetensors", ".gguf"))
    return sum(file.stat().st_size for file in files)


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write a JSON file. Raises `OutputError`."""
    with output_errors(path):
        path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def _copied_names(source: CheckpointReader, blocks: Sequence[PackedBlock]) -> Iterator[str]:
    changed = {f"{module.record.name}.weight" for block in blocks for module in block.modules}
    changed |= {name for block in blocks for name in block.replaced}
    return (name for name in source.names() if name not in changed)


def _differs(path: Path, name: str) -> OutputError:
    return OutputError(
        f"{path}: {name} does not read back as it was written",
        "The disk or the memory is faulty; remove the directory and quantize again.",
    )
