"""The two records that go with a checkpoint: what was made of what, and how it went this time.

Data in, JSON values out. Law: the first record is the same for the same inputs; whatever differs
from run to run is in the second.
"""

import platform
from collections.abc import Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Any

import torch

from llmopt import __version__
from llmopt.quantize.identity import RunInputs, calibration_hash, source_name
from llmopt.quantize.options import Job, ModuleRecord, QuantizeSummary


def content_record(inputs: RunInputs, job: Job, modules: Sequence[ModuleRecord]) -> dict[str, Any]:
    """Return quantization.json."""
    scheme, calibration = job.scheme, inputs.calibration
    return {
        "llmopt": __version__,
        "fingerprint": inputs.fingerprint(job),
        "method": scheme.method,
        "scheme": scheme.label,
        "format": job.format,
        "source": {"name": source_name(inputs.reader.path), "sha256": inputs.source_sha256},
        "spec": None if scheme.spec is None else asdict(scheme.spec),
        "overrides": [asdict(override) for override in job.overrides],
        "propagate": job.propagate if scheme.uses_gptq or scheme.uses_awq else None,
        "gptq": asdict(job.gptq) if scheme.uses_gptq else None,
        "awq": asdict(job.awq) if scheme.uses_awq else None,
        "calibration": {
            "text": calibration.source,
            "text_sha256": calibration.text_sha256,
            "tokens_sha256": calibration_hash(calibration),
            "num_samples": calibration.num_samples,
            "sample_tokens": calibration.sample_tokens,
            "seed": calibration.seed,
        }
        if scheme.needs_calibration and calibration is not None
        else None,
        "modules": [asdict(record) for record in modules],
    }


def run_record(summary: QuantizeSummary, device: torch.device) -> dict[str, Any]:
    """Return quantization-run.json."""
    on_gpu = device.type == "cuda"
    return {
        "seconds": round(summary.seconds, 3),
        "shared_seconds": round(summary.shared_seconds, 3),
        "peak_memory": asdict(summary.peak_memory),
        "resumed_blocks": summary.resumed_blocks,
        "bits_per_weight": summary.bits_per_weight,
        "file_bytes": summary.file_bytes,
        "device": torch.cuda.get_device_name(device) if on_gpu else platform.processor() or "cpu",
        "threads": torch.get_num_threads(),
        "finished_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "versions": {
            "llmopt": __version__,
            "torch": torch.__version__,
            "python": platform.python_version(),
        },
    }
