"""The report for programs: CSV and JSON with all digits, units in the names.

Knows nothing about layout. The law: the columns are the same for every row, and an unknown value
is empty (CSV) or null (JSON), never 0.
"""

import csv
import io
import json

from llmopt.report.report import Report
from llmopt.report.rows import Row, Speed
from llmopt.results.codec import to_json
from llmopt.results.schema import (
    LoadSpec,
    ModelFacts,
    Percentiles,
    QualityRecord,
    QuantizationRecord,
)

Value = str | int | float | bool | None


def to_csv(report: Report) -> str:
    """Return one line per row of the report, under a line of names. The notes are not in it."""
    rows = [flat(row) for row in report.rows]
    if not rows:
        return ""
    text = io.StringIO()
    writer = csv.DictWriter(text, rows[0].keys(), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def to_json_text(report: Report) -> str:
    """Return {"rows": [...], "notes": [...]}; the rows have the columns of the CSV."""
    document = {"rows": [flat(row) for row in report.rows], "notes": list(report.notes)}
    return json.dumps(to_json(document), indent=2, ensure_ascii=False) + "\n"


def flat(row: Row) -> dict[str, Value]:
    """Return the row with all its numbers on one level, named and with units."""
    return {
        "recipe": row.recipe,
        "machine": row.machine,
        "backend": row.backend,
        "target": row.target,
        "is_base": row.is_base,
        "status": row.status,
        "reason": row.reason,
        "num_runs": row.num_runs,
        "created_at": row.created_at,
        **_load(row.load),
        **_model(row.model),
        **_quality(row.quality),
        **_quantization(row.quantization),
        **_speed(row.speed),
    }


def _load(load: LoadSpec | None) -> dict[str, Value]:
    return {
        "concurrency": load.concurrency if load else None,
        "num_requests": load.num_requests if load else None,
        "prompt_tokens": load.prompt_tokens if load else None,
        "output_tokens": load.output_tokens if load else None,
    }


def _model(model: ModelFacts | None) -> dict[str, Value]:
    return {
        "scheme": model.scheme if model else None,
        "compute_dtype": model.compute_dtype if model else None,
        "kernels": " ".join(model.kernels) if model else None,
        "num_parameters": model.num_parameters if model else None,
        "file_bytes": model.file_bytes if model else None,
        "weight_bytes": model.weight_bytes if model else None,
        "bits_per_weight": model.bits_per_weight if model else None,
        "linear_bits_per_weight": model.linear_bits_per_weight if model else None,
    }


def _quality(quality: QualityRecord | None) -> dict[str, Value]:
    return {
        "kld_mean": quality.kld_mean if quality else None,
        "kld_mean_low": quality.kld_mean_ci[0] if quality else None,
        "kld_mean_high": quality.kld_mean_ci[1] if quality else None,
        "kld_median": quality.kld_median if quality else None,
        "kld_p99": quality.kld_p99 if quality else None,
        "kld_max": quality.kld_max if quality else None,
        "top1_agreement": quality.top1_agreement if quality else None,
        "top1_agreement_low": quality.top1_agreement_ci[0] if quality else None,
        "top1_agreement_high": quality.top1_agreement_ci[1] if quality else None,
        "ppl": quality.ppl if quality else None,
        "ppl_ratio": quality.ppl_ratio if quality else None,
        "ppl_ratio_low": quality.ppl_ratio_ci[0] if quality else None,
        "ppl_ratio_high": quality.ppl_ratio_ci[1] if quality else None,
    }


def _quantization(record: QuantizationRecord | None) -> dict[str, Value]:
    calibration = record.calibration if record else None
    return {
        "quantization_engine": record.engine if record else None,
        "quantization_engine_version": record.engine_version if record else None,
        "quantization_scheme": record.scheme if record else None,
        "quantization_format": record.format if record else None,
        "quantization_s": record.seconds if record else None,
        "quantization_shared_s": record.shared_seconds if record else None,
        "quantization_host_peak_bytes": record.host_peak_bytes if record else None,
        "quantization_host_before_bytes": record.host_before_bytes if record else None,
        "quantization_device_peak_bytes": record.device_peak_bytes if record else None,
        "quantization_num_threads": record.num_threads if record else None,
        "calibration_text": calibration.text_name if calibration else None,
        "calibration_num_samples": calibration.num_samples if calibration else None,
        "calibration_sample_tokens": calibration.sample_tokens if calibration else None,
        "quantized_at": record.made_at if record else None,
    }


def _speed(speed: Speed | None) -> dict[str, Value]:
    summary = speed.summary if speed else None
    return {
        **_percentiles("ttft", summary.ttft_ms if summary else None),
        **_percentiles("tpot", summary.tpot_ms if summary else None),
        **_percentiles("itl", summary.itl_ms if summary else None),
        **_percentiles("e2e", summary.e2e_ms if summary else None),
        "output_throughput_tokens_per_s": speed.output_throughput if speed else None,
        "output_throughput_min_tokens_per_s": speed.output_throughput_min if speed else None,
        "output_throughput_max_tokens_per_s": speed.output_throughput_max if speed else None,
        "total_throughput_tokens_per_s": summary.total_throughput if summary else None,
        "request_throughput_per_s": summary.request_throughput if summary else None,
        "speedup": speed.speedup if speed else None,
        "tpot_speedup": speed.tpot_speedup if speed else None,
        "mfu": summary.mfu if summary else None,
        "mbu": summary.mbu if summary else None,
        "peak_memory_bytes": summary.peak_memory_bytes if summary else None,
    }


def _percentiles(name: str, percentiles: Percentiles | None) -> dict[str, Value]:
    return {
        f"{name}_p50_ms": percentiles.p50 if percentiles else None,
        f"{name}_p90_ms": percentiles.p90 if percentiles else None,
        f"{name}_p99_ms": percentiles.p99 if percentiles else None,
        f"{name}_mean_ms": percentiles.mean if percentiles else None,
    }
