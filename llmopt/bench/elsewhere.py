"""A checkpoint made by a quantizer of others, with the same records as one of our own.

Knows the engines and the records; knows nothing about recipes. The law: an engine sees the same
calibration windows as we do, and its time and memory are measured as ours are.
"""

import platform
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, cast

from llmopt import __version__
from llmopt.formats.checkpoint import CheckpointReader
from llmopt.formats.gguf_blocks import ggml_type
from llmopt.formats.staging import staged_directory
from llmopt.hardware.children import ChildrenMeter
from llmopt.models.gguf_export import FILE_TYPES, export_gguf
from llmopt.models.tokenizer import load_tokenizer
from llmopt.quantize.calibration import CalibrationData
from llmopt.quantize.engines.request import EngineMethod, EngineRequest, EngineSummary
from llmopt.quantize.engines.run import quantize_with_engine
from llmopt.quantize.identity import source_name
from llmopt.quantize.importance import importance_matrix
from llmopt.quantize.output import RECORD_FILE, RUN_FILE, write_json
from llmopt.quantize.scheme import Scheme

OnLine = Callable[[str], None]

_GGUF_SOURCE = "source.gguf"


def quantize_elsewhere(
    engine: str,
    source: Path,
    out: Path,
    scheme: Scheme,
    calibration: CalibrationData | None,
    *,
    on_gpu: bool,
    on_line: OnLine,
    gguf_pre: str | None = None,
) -> None:
    """Make the directory `out` with a checkpoint, quantization.json and quantization-run.json.

    A GGUF file is made of the model in float32, with the importance matrix of the calibration
    tokens; gguf_pre: llama.cpp's name of the pre-tokenizer, where it cannot be told from the
    tokenizer. Raises what `quantize_with_engine` raises.
    """
    request = EngineRequest(
        source,
        out,
        cast(EngineMethod, scheme.method),  # the engine refuses what it does not offer
        scheme.spec,
        calibration,
        scheme.double_quant,
        scheme.mix,
        device="cuda" if on_gpu else "cpu",
    )
    if scheme.mix is not None:
        _quantize_gguf(engine, request, on_line, gguf_pre)
        return
    with ChildrenMeter() as meter:
        summary = quantize_with_engine(engine, request, on_line)
    write_json(out / RUN_FILE, _run_record(summary, meter))


def _quantize_gguf(
    engine: str, request: EngineRequest, on_line: OnLine, gguf_pre: str | None
) -> None:
    with staged_directory(request.out) as staging:
        whole = staging / _GGUF_SOURCE
        _export(request.model, whole, gguf_pre)
        file = staging / f"{source_name(request.model)}-{str(request.gguf_type).upper()}.gguf"
        seen = request.calibration
        importance = None if seen is None else importance_matrix(request.model, seen)
        asked = replace(request, model=whole, out=file, importance=importance)
        with ChildrenMeter() as meter:
            summary = quantize_with_engine(engine, asked, on_line)
        whole.unlink()
        record = {
            "llmopt": __version__,
            "engine": {"name": engine, "versions": summary.versions},
            "method": request.method,
            "scheme": request.scheme,
            "format": "gguf",
            "calibration": None
            if seen is None
            else {
                "text": seen.source,
                "text_sha256": seen.text_sha256,
                "num_samples": seen.num_samples,
                "sample_tokens": seen.sample_tokens,
            },
        }
        write_json(staging / RECORD_FILE, record)
        write_json(staging / RUN_FILE, _run_record(summary, meter))


def _export(model: Path, file: Path, pre: str | None) -> None:
    """Write a model as a GGUF file in float32."""
    reader = CheckpointReader(model)
    export_gguf(
        reader,
        load_tokenizer(model),
        file,
        name=source_name(model),
        file_type=FILE_TYPES["f32"],
        choose=lambda _: ggml_type("f32"),
        encode=_refuse_blocks,
        pre=pre,
    )


def _refuse_blocks(*_: object) -> Any:
    raise AssertionError("nothing is stored in blocks")


def _run_record(summary: EngineSummary, meter: ChildrenMeter) -> dict[str, Any]:
    return {
        "seconds": round(summary.seconds, 3),
        "shared_seconds": None,
        "peak_memory": {"host_bytes": meter.peak_bytes},
        "file_bytes": summary.file_bytes,
        "finished_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "versions": {**summary.versions, "python": platform.python_version()},
    }
