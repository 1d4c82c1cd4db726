"""What an engine wrote: opened, completed and recorded before it is published.

Knows files; knows nothing of processes. The law: a checkpoint whose headers do not open, or that is
not quantized, is never published, and the tokenizer in it is the source's, bit for bit.
"""

import json
import os
import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Any

from llmopt import __version__
from llmopt.errors import BackendError, CheckpointError
from llmopt.formats.checkpoint import TOKENIZER_FILES, CheckpointReader
from llmopt.formats.staging import output_errors
from llmopt.formats.weights import quantization_config
from llmopt.quantize.engines.engine import Engine
from llmopt.quantize.engines.request import EngineRequest
from llmopt.quantize.identity import calibration_hash, source_hash
from llmopt.quantize.output import RECORD_FILE

_GGUF_MAGIC = b"GGUF"
_REMEDY = "Report it with the command."


def is_gguf(path: Path) -> bool:
    """Whether a file starts as GGUF files do."""
    if not path.is_file():
        return False
    with path.open("rb") as stream:
        return stream.read(len(_GGUF_MAGIC)) == _GGUF_MAGIC


def finish_output(
    engine: Engine, request: EngineRequest, versions: dict[str, str], output: Path
) -> int:
    """Make what a worker wrote fit to be published; returns the size of its weights in bytes.

    Raises `BackendError` if it is not what was asked for, and `OutputError` if it cannot be
    completed.
    """
    if request.method == "gguf":
        if not is_gguf(output):
            raise BackendError(f"{engine.name} wrote no GGUF file", _REMEDY)
        with output_errors(request.out):
            _sync(output)
        return output.stat().st_size
    reader = _open(engine, output)
    with output_errors(request.out):
        for name in (*TOKENIZER_FILES, "generation_config.json"):
            if (request.model / name).is_file():
                shutil.copyfile(request.model / name, output / name)
        record = json.dumps(_record(engine, request, versions), indent=2) + "\n"
        (output / RECORD_FILE).write_text(record, encoding="utf-8")
        for file in sorted(output.rglob("*")):
            if file.is_file():
                file.chmod(0o644)  # safetensors makes files that only the owner reads
                _sync(file)
    return reader.num_bytes


def _open(engine: Engine, output: Path) -> CheckpointReader:
    try:
        reader = CheckpointReader(output)
        config = quantization_config(reader.config)
    except CheckpointError as error:
        raise BackendError(
            f"{engine.name} wrote no checkpoint that opens ({error.message})", _REMEDY
        ) from error
    if config is None:
        raise BackendError(f"{engine.name} wrote a checkpoint that is not quantized", _REMEDY)
    return reader


def _record(engine: Engine, request: EngineRequest, versions: dict[str, str]) -> dict[str, Any]:
    """What was made of what, and by whom."""
    capability, source = engine.capability(request.method), CheckpointReader(request.model)
    calibration = request.calibration if capability.needs_calibration else None
    return {
        "llmopt": __version__,
        "engine": {"name": engine.name, "versions": versions},
        "method": request.method,
        "scheme": request.scheme,
        "format": capability.format,
        "source": {"name": request.model.resolve().name, "sha256": source_hash(source)},
        "spec": None if request.spec is None else asdict(request.spec),
        "calibration": None
        if calibration is None
        else {
            "text": calibration.source,
            "text_sha256": calibration.text_sha256,
            "tokens_sha256": calibration_hash(calibration),
            "num_samples": calibration.num_samples,
            "sample_tokens": calibration.sample_tokens,
            "seed": calibration.seed,
        },
    }


def _sync(file: Path) -> None:
    """Force a file's contents to the disk."""
    descriptor = os.open(file, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
