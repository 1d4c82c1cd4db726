"""The columns of the printed table: header and text of each cell.

Knows nothing about terminals or Markdown. The law: all columns together fit 100 characters with
one space between them, and a number is never longer than its column because of digits that mean
nothing; the full digits are in CSV and JSON.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from llmopt.report.engine_figures import differ
from llmopt.report.rows import Row
from llmopt.results.schema import Interval, LoadSpec, Percentiles, Verdict

MISSING = "–"
NOT_APPLICABLE = "n/a"  # such as the quality of random weights
OWN_ENGINE = "llmopt"


@dataclass(frozen=True, slots=True)
class Column:
    """A column: `header` (two lines at most) and the text that a row has in it."""

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
    """Return the concurrency of a closed loop, the rate "4/s" of an open one, or its kind."""
    if load.kind == "closed":
        return str(load.concurrency)
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


def _ttft(row: Row) -> str:
    return _median_ms(row.speed.summary.ttft_ms if row.speed else None)


def _tpot(row: Row) -> str:
    return _median_ms(row.speed.summary.tpot_ms if row.speed else None)


def _median_ms(percentiles: Percentiles | None) -> str:
    return MISSING if percentiles is None else three_digits(percentiles.p50)


def _throughput(row: Row) -> str:
    if row.status != "ok":
        return row.status
    return MISSING if row.speed is None else three_digits(row.speed.output_throughput)


def _speedup(row: Row) -> str:
    if row.speed is None or row.speed.speedup is None:
        return MISSING
    return f"{row.speed.speedup:.2f}x"


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


def _megabytes(num_bytes: float | None) -> str:
    return MISSING if num_bytes is None else three_digits(num_bytes / 1e6)


_TARGET = Column("target", lambda row: row.target, is_number=False)
_SIZE = Column("size\nMB", _size)
_BITS = Column("bits/\nweight", _bits)
_KLD_HEADER = "KLD [95 % CI]"
_LOSS = (Column("top-1", _top1), Column("PPL\nratio", _ppl_ratio))
_VERDICT = Column("vs\nnoise", _verdict)
_ENGINE = Column("engine", _engine, is_number=False)
_PEAK_DEVICE_MEMORY = Column("GPU\nMB", _peak_device_memory)
_SPEED = (
    Column("TTFT\nms", _ttft),
    Column("TPOT\nms", _tpot),
    Column("tok/s", _throughput),
    Column("speed\n-up", _speedup),
    Column("MFU", _mfu),
    Column("MBU", _mbu),
)
_LENGTHS = Column("tokens\nin+out", _lengths)
_ENGINE_FIGURES = {
    "hit_rate": Column("cache\nhits", lambda row: _engine_share(row, "hit_rate")),
    "waste_share": Column("KV\nwaste", lambda row: _engine_share(row, "waste_share")),
    "peak_kv_bytes": Column(
        "KV\nMB", lambda row: _megabytes(row.engine.peak_kv_bytes if row.engine else None)
    ),
    "acceptance_rate": Column("drafts\ntaken", lambda row: _engine_share(row, "acceptance_rate")),
    "tokens_per_step": Column("tok/\nstep", lambda row: _tokens_per_step(row)),
}
_GOODPUT = Column("good\nput", _goodput)
_SPEED_OF_ENGINES = _SPEED[:-2]
_SPEED_OF_SLO = (*_SPEED[:-2], _GOODPUT, _SPEED[-1])


def columns_of(rows: Sequence[Row]) -> tuple[Column, ...]:
    """Return the columns of a section: of speed, or of quality and what it took to get there.

    The verdict has a column where a noise floor was measured. Beside speed it takes the place of
    the bits per weight, which the size tells as well. Goodput takes that of MFU where there is an
    SLO. Where engines were compared and no quality was measured, their figures take the place of
    the loss, and of MFU and MBU, which count work that a cache saves.
    """
    judged = any(row.quality is not None and row.quality.verdict is not None for row in rows)
    verdict = (_VERDICT,) if judged else ()
    if any(row.load is not None for row in rows):
        bits = () if judged else (_BITS,)
        kld = Column(_KLD_HEADER, kld_text)
        open_loop = any(row.load is not None and row.load.kind != "closed" for row in rows)
        conc = Column("load" if open_loop else "conc", _concurrency)
        speed = _SPEED_OF_SLO if any(row.load and row.load.slo for row in rows) else _SPEED
        engine = _engine_columns(rows)
        if engine:
            lengths = (_LENGTHS,) if _differ(rows, _lengths) else ()
            return (_TARGET, conc, *lengths, _SIZE, *engine, *_SPEED_OF_ENGINES)
        return (_TARGET, conc, _SIZE, *bits, kld, *_LOSS, *verdict, *speed)
    bits = (Column("linear\nbits", _linear_bits),)
    kld = Column(_KLD_HEADER, _kld_or_status)
    return (_TARGET, *_engine_of(rows), *bits, _SIZE, kld, *_LOSS, *verdict, *_cost_of(rows))


def _engine_columns(rows: Sequence[Row]) -> tuple[Column, ...]:
    """The figures of engines by which rows under one load differ; none beside quality."""
    if any(row.quality is not None for row in rows):
        return ()
    known = [row for row in rows if row.engine is not None]
    loads = [[row.engine for row in known if row.load == load] for load in _loads(known)]
    return tuple(
        column
        for name, column in _ENGINE_FIGURES.items()
        if any(differ([each for each in figures if each], name) for figures in loads)
    )


def _loads(rows: Sequence[Row]) -> list[LoadSpec | None]:
    """Each load once."""
    return list(dict.fromkeys(row.load for row in rows))


def _differ(rows: Sequence[Row], text: Callable[[Row], str]) -> bool:
    return len({text(row) for row in rows}) > 1


def _engine_of(rows: Sequence[Row]) -> tuple[Column, ...]:
    """The engine, where others than llmopt quantized."""
    engines = {row.quantization.engine for row in rows if row.quantization is not None}
    return (_ENGINE,) if engines - {OWN_ENGINE} else ()


def _cost_of(rows: Sequence[Row]) -> tuple[Column, ...]:
    """Time and memory of quantizing, that of a GPU where there was one."""
    made = [row.quantization for row in rows if row.quantization is not None]
    gpu = any(record.device_peak_bytes is not None for record in made)
    host = (Column("seconds", _seconds), Column("peak\nMB", _peak_memory))
    return (*host, _PEAK_DEVICE_MEMORY) if gpu else host
