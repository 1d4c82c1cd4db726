"""The columns that a table can have: name, header, and the text of each cell.

Knows nothing about terminals or Markdown, nor which columns a table shows. The law: a number never
has digits that mean nothing; the full digits are in CSV and JSON.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

from llmopt.report.rows import Row
from llmopt.results.schema import Interval, LoadSpec, Percentiles, Verdict

MISSING = "–"
NOT_APPLICABLE = "n/a"  # such as the quality of random weights
OWN_ENGINE = "llmopt"


@dataclass(frozen=True, slots=True)
class Column:
    """A column: `name` (for choosing it), `header` (two lines at most), and the text of a row."""

    name: str
    header: str
    text: Callable[[Row], str]
    is_number: bool = True


def kld_text(row: Row) -> str:
    """Return "0.314 [.296, .335]": the mean and its confidence interval, "≥" before a bound."""
    if row.model is not None and row.model.is_dummy:
        return NOT_APPLICABLE
    if row.is_base:
        return "base"
    if row.quality is None:
        return MISSING
    bound = "≥" if row.quality.lower_bound else ""
    return bound + kld_interval_text(row.quality.kld_mean, row.quality.kld_mean_ci)


def kld_interval_text(mean: float, interval: Interval) -> str:
    """Return a KL divergence and its interval with the digits that matter."""
    if mean < 0.00001:
        return "<0.00001"
    decimals = 1 if mean >= 10 else 3 if mean >= 0.01 else 4 if mean >= 0.001 else 5
    low, high = (f"{end:.{decimals}f}".removeprefix("0") for end in interval)
    return f"{mean:.{decimals}f} [{low}, {high}]"


def verdict_text(verdict: Verdict) -> str:
    """Return "= base", how many times the noise "3.5x" is measured, or "worse"."""
    if verdict.label == "indistinguishable":
        return "= base"
    if verdict.label == "worse":
        return "worse"
    return f"{verdict.times_noise:.{1 if verdict.times_noise < 9.95 else 0}f}x"


def load_text(load: LoadSpec) -> str:
    """Return the concurrency of a closed loop, the rate "4/s" of an open one, or its kind.

    A concurrency of 0 is one that is not known.
    """
    if load.kind == "closed":
        return str(load.concurrency) if load.concurrency else MISSING
    return load.kind if load.rate is None else f"{load.rate:.3g}/s"


def three_digits(value: float) -> str:
    """Return a positive number with three significant digits, all before the point kept."""
    return f"{value:.{2 if value < 9.995 else 1 if value < 99.95 else 0}f}"


def _size(row: Row) -> str:
    return MISSING if row.model is None else three_digits(row.model.file_bytes / 1e6)


def _bits(row: Row) -> str:
    return MISSING if row.model is None else f"{row.model.bits_per_weight:.2f}"


def _top1(row: Row) -> str:
    if row.is_base or row.quality is None:
        return MISSING
    return f"{100 * row.quality.top1_agreement:.1f}%"


def _ppl_ratio(row: Row) -> str:
    if row.is_base or row.quality is None:
        return MISSING
    ratio = row.quality.ppl_ratio
    if ratio < 9.9995:
        return f"{ratio:.3f}"
    return three_digits(ratio) if ratio < 99_999.5 else f"{ratio:.0e}"


def _verdict(row: Row) -> str:
    if row.is_base or row.quality is None or row.quality.verdict is None:
        return MISSING
    return verdict_text(row.quality.verdict)


def _throughput(row: Row) -> str:
    if row.status != "ok":
        return row.status
    return MISSING if row.speed is None else three_digits(row.speed.output_throughput)


def _speedup(row: Row) -> str:
    return _ratio_text(row.speed.speedup if row.speed else None)


def _mfu(row: Row) -> str:
    return _percent(row.speed.summary.mfu if row.speed else None)


def _goodput(row: Row) -> str:
    goodput = row.speed.summary.goodput if row.speed else None
    return MISSING if goodput is None else f"{100 * goodput.share:.0f}%"


def _mbu(row: Row) -> str:
    return _percent(row.speed.summary.mbu if row.speed else None)


def _percent(share: float | None) -> str:
    if share is None:
        return MISSING
    return f"{100 * share:.{1 if share < 0.0995 else 0}f}%"


def _concurrency(row: Row) -> str:
    return MISSING if row.load is None else load_text(row.load)


def _lengths(row: Row) -> str:
    return MISSING if row.load is None else f"{row.load.prompt_tokens}+{row.load.output_tokens}"


def _linear_bits(row: Row) -> str:
    if row.model is None:
        return MISSING
    bits = row.model.linear_bits_per_weight
    return f"{row.model.bits_per_weight if bits is None else bits:.2f}"


def _engine(row: Row) -> str:
    made = row.quantization
    if made is None:
        return MISSING
    version = None if made.engine == OWN_ENGINE else made.engine_version
    return f"{made.engine} {version or ''}".strip()


def _kld_or_status(row: Row) -> str:
    return kld_text(row) if row.status == "ok" else row.status


def _seconds(row: Row) -> str:
    seconds = row.quantization.seconds if row.quantization else None
    return MISSING if seconds is None else three_digits(seconds)


def _peak_memory(row: Row) -> str:
    return _megabytes(row.quantization.host_peak_bytes if row.quantization else None)


def _peak_device_memory(row: Row) -> str:
    return _megabytes(row.quantization.device_peak_bytes if row.quantization else None)


def _engine_share(row: Row, name: str) -> str:
    return _percent(getattr(row.engine, name) if row.engine else None)


def _tokens_per_step(row: Row) -> str:
    found = row.engine.tokens_per_step if row.engine else None
    return MISSING if found is None else f"{found:.2f}"


def _kv_memory(row: Row) -> str:
    return _megabytes(row.engine.peak_kv_bytes if row.engine else None)


def _megabytes(num_bytes: float | None) -> str:
    return MISSING if num_bytes is None else three_digits(num_bytes / 1e6)


def _percentile(row: Row, field: str, percent: str) -> str:
    found: Percentiles | None = getattr(row.speed.summary, field) if row.speed else None
    return MISSING if found is None else three_digits(getattr(found, percent))


def _latency(name: str, metric: str, percent: str) -> Column:
    """A percentile of a latency in ms."""

    def text(row: Row) -> str:
        return _percentile(row, f"{metric}_ms", percent)

    suffix = "" if name == metric else f" {percent}"
    return Column(name, f"{metric.upper()}{suffix}\nms", text)


def _ratio_text(ratio: float | None) -> str:
    return MISSING if ratio is None else f"{ratio:.2f}x"


def _gain(row: Row, metric: str) -> str:
    return _ratio_text(getattr(row.speed, f"{metric}_speedup") if row.speed else None)


def _summary_text(row: Row, name: str, text: Callable[[float], str]) -> str:
    found = getattr(row.speed.summary, name) if row.speed else None
    return MISSING if found is None else text(found)


_COLUMNS = (
    Column("target", "target", lambda row: row.target, is_number=False),
    Column("recipe", "recipe", lambda row: row.recipe, is_number=False),
    Column("backend", "backend", lambda row: row.backend, is_number=False),
    Column("engine", "engine", _engine, is_number=False),
    Column("conc", "conc", _concurrency),
    Column("load", "load", _concurrency),
    Column("lengths", "tokens\nin+out", _lengths),
    Column("kld", "KLD [95 % CI]", kld_text),
    Column("kld_or_status", "KLD [95 % CI]", _kld_or_status),
    Column("top1", "top-1", _top1),
    Column("ppl_ratio", "PPL\nratio", _ppl_ratio),
    Column("noise", "vs\nnoise", _verdict),
    Column("size", "size\nMB", _size),
    Column("bits", "bits/\nweight", _bits),
    Column("linear_bits", "linear\nbits", _linear_bits),
    _latency("ttft", "ttft", "p50"),
    _latency("ttft_p95", "ttft", "p95"),
    _latency("tpot", "tpot", "p50"),
    _latency("tpot_p95", "tpot", "p95"),
    _latency("itl_p95", "itl", "p95"),
    _latency("e2e", "e2e", "p50"),
    _latency("e2e_p95", "e2e", "p95"),
    Column("throughput", "tok/s", _throughput),
    Column("goodput", "good\nput", _goodput),
    Column("speedup", "speed\n-up", _speedup),
    Column("tpot_speedup", "TPOT\ngain", lambda row: _gain(row, "tpot")),
    Column("ttft_speedup", "TTFT\ngain", lambda row: _gain(row, "ttft")),
    Column("mfu", "MFU", _mfu),
    Column("mbu", "MBU", _mbu),
    Column("memory", "peak\nMB", lambda row: _summary_text(row, "peak_memory_bytes", _megabytes)),
    Column("startup", "start\ns", lambda row: _summary_text(row, "startup_s", three_digits)),
    Column("energy", "J/\ntok", lambda row: _summary_text(row, "joules_per_token", three_digits)),
    Column(
        "cost",
        "cost/\n1M tok",
        lambda row: _summary_text(row, "cost_per_million_tokens", three_digits),
    ),
    Column("hit_rate", "cache\nhits", lambda row: _engine_share(row, "hit_rate")),
    Column("waste_share", "KV\nwaste", lambda row: _engine_share(row, "waste_share")),
    Column("peak_kv_bytes", "KV\nMB", _kv_memory),
    Column("acceptance_rate", "drafts\ntaken", lambda row: _engine_share(row, "acceptance_rate")),
    Column("tokens_per_step", "tok/\nstep", _tokens_per_step),
    Column("quantize_s", "seconds", _seconds),
    Column("quantize_memory", "peak\nMB", _peak_memory),
    Column("quantize_gpu_memory", "GPU\nMB", _peak_device_memory),
)
COLUMNS: Mapping[str, Column] = MappingProxyType({column.name: column for column in _COLUMNS})
