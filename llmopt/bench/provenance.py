"""How a checkpoint was quantized, from the two files that lie beside its weights.

Knows nothing about quantizing. The law: what the files do not say is not known; a file that says
it in another way than ours is as if it were not there.
"""

from pathlib import Path
from typing import Any

from llmopt.errors import CheckpointError, ResultError
from llmopt.formats.checkpoint import read_json
from llmopt.quantize.output import RECORD_FILE, RUN_FILE
from llmopt.recipe.schema import OWN_ENGINE
from llmopt.results.codec import from_json
from llmopt.results.schema import QuantizationRecord


def quantization_record(path: Path) -> QuantizationRecord | None:
    """Return the record of a model directory or a GGUF file; None if there is none.

    A GGUF file that shares its directory with another one has none: it is not known whose it is.
    """
    directory = path if path.is_dir() else path.parent
    if path.is_file() and len(list(directory.glob("*.gguf"))) > 1:
        return None
    made, run = _read(directory / RECORD_FILE), _read(directory / RUN_FILE)
    if "llmopt" not in made:
        return None
    engine = made.get("engine") or {"name": OWN_ENGINE, "versions": {"llmopt": made["llmopt"]}}
    peak = run.get("peak_memory") or {}
    try:
        fields = {
            "scheme": made.get("scheme"),
            "format": made.get("format"),
            "engine": engine["name"],
            "engine_version": next(iter(engine["versions"].values()), None),
            "seconds": run.get("seconds"),
            "shared_seconds": run.get("shared_seconds"),
            "host_peak_bytes": peak.get("host_bytes"),
            "host_before_bytes": peak.get("host_before_bytes"),
            "device_peak_bytes": peak.get("device_bytes"),
            "num_threads": run.get("threads"),
            "calibration": _calibration(made.get("calibration")),
            "made_at": run.get("finished_at"),
        }
        return from_json(QuantizationRecord, fields, str(directory / RECORD_FILE))
    except (ResultError, AttributeError, KeyError, TypeError):
        return None


def _calibration(record: Any) -> dict[str, object] | None:
    if record is None:
        return None
    return {
        "text_name": record["text"],
        "text_sha256": record["text_sha256"],
        "num_samples": record["num_samples"],
        "sample_tokens": record["sample_tokens"],
    }


def _read(path: Path) -> dict[str, Any]:
    try:
        return read_json(path)
    except CheckpointError:
        return {}
