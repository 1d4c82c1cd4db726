"""The report for programs: CSV and JSON with all digits, units in the names.

Knows nothing about layout. The law: the columns are the same for every row, and an unknown value
is empty (CSV) or null (JSON), never 0.
"""

import csv
import io
import json
from collections.abc import Sequence

from llmopt.bench.definitions import DEFINITIONS
from llmopt.report.engine_figures import EngineFigures
from llmopt.report.measures import MEASURES, Measure
from llmopt.report.report import Report
from llmopt.report.rows import Row, Speed
from llmopt.results.codec import to_json
from llmopt.results.schema import (
    DeltaP,
    Interval,
    LoadSpec,
    ModelFacts,
    NoiseFloor,
    Percentiles,
    QualityRecord,
    QuantizationRecord,
    Summary,
    Verdict,
)

Value = str | int | float | bool | None

_UNITS = {"tok/s": "tokens_per_s", "requests/s": "per_s", "requests": "requests", "s": "s"}
_UNITS |= {"bytes": "bytes", "J": "j"}
# metrics whose columns are older than the definition ids
_NAMED_ABOVE = {"ttft", "tpot", "itl", "e2e", "output_throughput", "total_throughput", "mfu", "mbu"}
_NAMED_ABOVE |= {"request_throughput", "peak_memory"}
_OF_SAMPLES = {d.field for d in DEFINITIONS.values() if d.unit == "ms"}


def to_csv(report: Report) -> str:
    """Return one line per row of the report, under a line of names. The notes are not in it."""
    rows = _rows(report)
    if not rows:
        return ""
    text = io.StringIO()
    writer = csv.DictWriter(text, rows[0].keys(), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def to_json_text(report: Report) -> str:
    """Return {"rows": [...], "notes": [...]}; the rows have the columns of the CSV."""
    document = {"rows": _rows(report), "notes": list(report.notes)}
    return json.dumps(to_json(document), indent=2, ensure_ascii=False) + "\n"


def flat(row: Row) -> dict[str, Value]:
    """Return the row with all its numbers on one level, named and with units."""
    values = {
        **_identity(row),
        **_load(row.load),
        **_model(row.model),
        **_quality(row.quality),
        **_quantization(row.quantization),
        **_speed(row.speed),
        **_engine(row.engine),
    }
    return {name: None if value != value else value for name, value in values.items()}


def _rows(report: Report) -> list[dict[str, Value]]:
    """All numbers of each row, or those of the chosen columns."""
    if not report.choice.columns:
        return [flat(row) for row in report.rows]
    names = dict.fromkeys(c.name for section in report.sections for c in section.columns)
    chosen = [MEASURES[name] for name in names if name in MEASURES]
    return [{**_identity(row), **_load(row.load), **_estimates(row, chosen)} for row in report.rows]


def _estimates(row: Row, measures: Sequence[Measure]) -> dict[str, Value]:
    """Values in the units of their columns, which their names say, and the ends of intervals."""
    values: dict[str, Value] = {}
    for measure in measures:
        if measure.name == "conc":
            continue
        found = measure.of(row)
        name = f"{measure.name}_{measure.unit}" if measure.unit else measure.name
        values[name] = found.value if found else None
        values |= _ends(name, found.interval if found else None)
    return values


def _identity(row: Row) -> dict[str, Value]:
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
        "imported_from": row.imported_from,
        "baseline": row.baseline,
    }


def _load(load: LoadSpec | None) -> dict[str, Value]:
    return {
        "load_kind": load.kind if load else None,
        "rate_per_s": load.rate if load else None,
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
        "is_dummy": model.is_dummy if model else None,
    }


def _quality(quality: QualityRecord | None) -> dict[str, Value]:
    return {
        "text": quality.text_name if quality else None,
        "protocol": quality.protocol_name if quality else None,
        "num_windows": quality.num_windows if quality else None,
        "num_tokens": quality.num_tokens if quality else None,
        "log_probs_of": quality.source if quality else None,
        "kld_mean": quality.kld_mean if quality else None,
        **_ends("kld_mean", quality.kld_mean_ci if quality else None),
        "kld_is_lower_bound": quality.lower_bound if quality else None,
        "kld_median": quality.kld_median if quality else None,
        "kld_p90": quality.kld_p90 if quality else None,
        "kld_p99": quality.kld_p99 if quality else None,
        "kld_p999": quality.kld_p999 if quality else None,
        "kld_max": quality.kld_max if quality else None,
        "top1_agreement": quality.top1_agreement if quality else None,
        **_ends("top1_agreement", quality.top1_agreement_ci if quality else None),
        "ppl": quality.ppl if quality else None,
        "base_ppl": quality.base_ppl if quality else None,
        "ppl_ratio": quality.ppl_ratio if quality else None,
        **_ends("ppl_ratio", quality.ppl_ratio_ci if quality else None),
        "word_ppl": quality.word_ppl if quality else None,
        "base_word_ppl": quality.base_word_ppl if quality else None,
        "bits_per_byte": quality.bits_per_byte if quality else None,
        "base_bits_per_byte": quality.base_bits_per_byte if quality else None,
        **_delta_p(quality.delta_p if quality else None),
        "base_cache_error": quality.base_cache_error if quality else None,
        **_noise(quality.noise if quality else None),
        **_verdict(quality.verdict if quality else None),
    }


def _delta_p(change: DeltaP | None) -> dict[str, Value]:
    return {
        "delta_p_mean": change.mean if change else None,
        **_ends("delta_p_mean", change.mean_ci if change else None),
        "delta_p_rms": change.rms if change else None,
        "delta_p_p01": change.p01 if change else None,
        "delta_p_p05": change.p05 if change else None,
        "delta_p_p25": change.p25 if change else None,
        "delta_p_p50": change.p50 if change else None,
        "delta_p_p75": change.p75 if change else None,
        "delta_p_p95": change.p95 if change else None,
        "delta_p_p99": change.p99 if change else None,
    }


def _noise(noise: NoiseFloor | None) -> dict[str, Value]:
    return {
        "noise_scheme": noise.scheme if noise else None,
        "noise_kld_mean": noise.kld_mean if noise else None,
        **_ends("noise_kld_mean", noise.kld_mean_ci if noise else None),
        "noise_ppl_ratio": noise.ppl_ratio if noise else None,
        **_ends("noise_ppl_ratio", noise.ppl_ratio_ci if noise else None),
    }


def _verdict(verdict: Verdict | None) -> dict[str, Value]:
    return {
        "verdict": verdict.label if verdict else None,
        "times_noise": verdict.times_noise if verdict else None,
        **_ends("times_noise", verdict.times_noise_ci if verdict else None),
    }


def _ends(name: str, interval: Interval | None) -> dict[str, Value]:
    low, high = (None, None) if interval is None else interval
    return {f"{name}_low": low, f"{name}_high": high}


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
        "ttft_speedup": speed.ttft_speedup if speed else None,
        **_ends("speedup", speed.speedup_ci if speed else None),
        **_ends("tpot_speedup", speed.tpot_speedup_ci if speed else None),
        **_ends("ttft_speedup", speed.ttft_speedup_ci if speed else None),
        **_ends("output_throughput", summary.output_throughput_ci if summary else None),
        **_ends("tpot_p50_ms", summary.tpot_p50_ci if summary else None),
        **_further(summary),
    }


def _further(summary: Summary | None) -> dict[str, Value]:
    """Every other metric by its definition id, with its unit where it has one."""
    values: dict[str, Value] = {}
    for name, definition in DEFINITIONS.items():
        found: object = summary
        for part in definition.field.split("."):
            found = getattr(found, part) if found is not None else None
        if name in _NAMED_ABOVE:
            continue
        if definition.field in _OF_SAMPLES:
            values |= _percentiles(name, found if isinstance(found, Percentiles) else None)
        else:
            unit = f"_{_UNITS[definition.unit]}" if definition.unit else ""
            values[name + unit] = found if isinstance(found, int | float) else None
    values["slo_met"] = summary.goodput.met if summary and summary.goodput else None
    values["goodput_share"] = summary.goodput.share if summary and summary.goodput else None
    return values


def _engine(figures: EngineFigures | None) -> dict[str, Value]:
    """What the metrics do not have already."""
    return {
        "kv_waste_share": figures.waste_share if figures else None,
        "kv_max_tokens_waste_share": figures.max_tokens_waste_share if figures else None,
        "kv_model_len_waste_share": figures.model_len_waste_share if figures else None,
        "peak_kv_bytes": figures.peak_kv_bytes if figures else None,
        "mean_draft_tokens": figures.mean_draft_tokens if figures else None,
        "tokens_per_step": figures.tokens_per_step if figures else None,
    }


def _percentiles(name: str, percentiles: Percentiles | None) -> dict[str, Value]:
    return {
        f"{name}_p50_ms": percentiles.p50 if percentiles else None,
        f"{name}_p90_ms": percentiles.p90 if percentiles else None,
        f"{name}_p99_ms": percentiles.p99 if percentiles else None,
        f"{name}_mean_ms": percentiles.mean if percentiles else None,
    }
