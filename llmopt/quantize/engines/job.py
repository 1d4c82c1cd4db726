"""The job file: what a worker is told, as JSON.

Knows nothing of processes or of any one engine. The law: everything that a worker needs is in the
directory of its job, and the calibration windows are in it as token ids.
"""

import json
from array import array
from pathlib import Path
from typing import Any

import torch

from llmopt.formats.staging import output_errors
from llmopt.quantize.engines.engine import Engine
from llmopt.quantize.engines.request import EngineRequest

JOB_FILE = "job.json"
OUTPUT_NAME = "output"
RESULT_FILE = "result.json"
TEMPORARY_NAME = "tmp"


def write_job(engine: Engine, request: EngineRequest, script: Path, work: Path) -> None:
    """Write the job for a worker's script into `work`, an empty directory given in full."""
    spec, calibration = request.spec, request.calibration
    needed = engine.capability(request.method).needs_calibration
    with output_errors(request.out):
        content = {
            "worker": str(script),
            "packages": engine.packages,
            "result": str(work / RESULT_FILE),
            "model": str(request.model.resolve()),
            "output": str(work / OUTPUT_NAME),
            "method": request.method,
            "bits": None if spec is None else spec.bits,
            "group_size": None if spec is None else spec.group_size,
            "symmetric": spec is None or spec.symmetric,
            "double_quant": request.double_quant,
            "gguf_type": request.gguf_type,
            "importance": _write_importance(request, work / "importance.bin"),
            "device": request.device,
            "calibration": calibration.tokens.tolist() if needed and calibration else None,
        }
        (work / JOB_FILE).write_text(json.dumps(content), encoding="utf-8")
        (work / TEMPORARY_NAME).mkdir()


def _write_importance(request: EngineRequest, file: Path) -> dict[str, Any] | None:
    """Write the importance matrix as float32 numbers in the machine's byte order."""
    if request.importance is None:
        return None
    with file.open("wb") as stream:
        for values in request.importance.values():
            array("f", values.to(torch.float32).tolist()).tofile(stream)
    counts = {name: values.numel() for name, values in request.importance.items()}
    return {"file": str(file), "tensors": counts}
