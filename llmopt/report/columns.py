"""The columns of the printed table: header and text of each cell.

Knows nothing about terminals or Markdown. The law: all columns together fit 100 characters with
one space between them, and a number is never longer than its column because of digits that mean
nothing; the full digits are in CSV and JSON.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from llmopt.report.rows import Row
from llmopt.results.schema import Percentiles

MISSING = "–"
OWN_ENGINE = "llmopt"


@dataclass(frozen=True, slots=True)
class Column:
    """A column: `header` (two lines at most) and the text that a row has in it."""

    header: str
    text: Callable[[Row], str]
    is_number: bool = True


def kld_text(row: Row) -> str:
    """Return "0.314 [.296, .335]": the mean and its confidence interval."""
    if row.is_base:
        return "base"
    quality = row.quality
    if quality is None:
        return MISSING
    if quality.kld_mean < 0.00001:
        return "<0.00001"
    decimals = 3 if quality.kld_mean >= 0.01 else 4 if quality.kld_mean >= 0.001 else 5
    low, high = (f"{end:.{decimals}f}".removeprefix("0") for end in quality.kld_mean_ci)
    return f"{quality.kld_mean:.{decimals}f} [{low}, {high}]"


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
    return f"{row.quality.ppl_ratio:.3f}"


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


def _mbu(row: Row) -> str:
    return _percent(row.speed.summary.mbu if row.speed else None)


def _percent(share: float | None) -> str:
    if share is None:
        return MISSING
    return f"{100 * share:.{1 if share < 0.0995 else 0}f}%"


def _concurrency(row: Row) -> str:
    return MISSING if row.load is None else str(row.load.concurrency)


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


def _megabytes(num_bytes: int | None) -> str:
    return MISSING if num_bytes is None else three_digits(num_bytes / 1e6)


_TARGET = Column("target", lambda row: row.target, is_number=False)
_KLD_HEADER = "KLD [95 % CI]"
_TOP1 = Column("top-1", _top1)
_PPL_RATIO = Column("PPL\nratio", _ppl_ratio)
_ENGINE = Column("engine", _engine, is_number=False)
_PEAK_DEVICE_MEMORY = Column("GPU\nMB", _peak_device_memory)

SPEED_COLUMNS = (
    _TARGET,
    Column("conc", _concurrency),
    Column("size\nMB", _size),
    Column("bits/\nweight", _bits),
    Column(_KLD_HEADER, kld_text),
    _TOP1,
    _PPL_RATIO,
    Column("TTFT\nms", _ttft),
    Column("TPOT\nms", _tpot),
    Column("tok/s", _throughput),
    Column("speed\n-up", _speedup),
    Column("MFU", _mfu),
    Column("MBU", _mbu),
)
QUALITY_COLUMNS = (
    _TARGET,
    Column("linear\nbits", _linear_bits),
    Column("size\nMB", _size),
    Column(_KLD_HEADER, _kld_or_status),
    _TOP1,
    _PPL_RATIO,
    Column("seconds", _seconds),
    Column("peak\nMB", _peak_memory),
)


def columns_of(rows: Sequence[Row]) -> tuple[Column, ...]:
    """Return the columns of a section: of speed, or of quality and what it took to get there.

    The engine has a column where others than llmopt quantized, and so has the memory of a GPU.
    """
    if any(row.load is not None for row in rows):
        return SPEED_COLUMNS
    made = [row.quantization for row in rows if row.quantization is not None]
    engine = (_ENGINE,) if any(record.engine != OWN_ENGINE for record in made) else ()
    gpu = any(record.device_peak_bytes is not None for record in made)
    return (
        QUALITY_COLUMNS[0],
        *engine,
        *QUALITY_COLUMNS[1:],
        *((_PEAK_DEVICE_MEMORY,) if gpu else ()),
    )
