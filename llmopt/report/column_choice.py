"""Which columns a table shows: chosen by name, or by what there is to tell.

Knows nothing about layout. The law: without a choice all columns together fit 100 characters with
one space between them, for target names of up to 14.
"""

from collections.abc import Iterator, Mapping, Sequence
from types import MappingProxyType

from llmopt.errors import UsageError
from llmopt.report.columns import COLUMNS, MISSING, OWN_ENGINE, Column
from llmopt.report.engine_figures import differ
from llmopt.report.rows import Row
from llmopt.results.schema import LoadSpec

_LOSS = ("top1", "ppl_ratio")
_SPEED = ("ttft", "tpot", "throughput", "speedup")
_ENGINE_FIGURES = (
    "hit_rate",
    "waste_share",
    "peak_kv_bytes",
    "acceptance_rate",
    "tokens_per_step",
)
GROUPS: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "quality": ("kld", *_LOSS, "noise"),
        "size": ("size", "bits", "linear_bits"),
        "speed": ("ttft", "ttft_p95", "tpot", "tpot_p95", "throughput", "goodput", "speedup"),
        "latency": ("ttft", "ttft_p95", "tpot", "tpot_p95", "itl_p95", "e2e", "e2e_p95"),
        "hardware": ("mfu", "mbu", "memory", "startup", *_ENGINE_FIGURES),
        "cost": ("energy", "cost", "quantize_s", "quantize_memory", "quantize_gpu_memory"),
    }
)
KEYS = ("target", "recipe", "backend", "engine", "conc", "load", "lengths")  # that tell rows apart
_INTERNAL = "kld_or_status"


def columns_of(rows: Sequence[Row]) -> tuple[Column, ...]:
    """Return the columns of a section: of speed, or of quality and what it took to get there.

    The verdict has a column where a noise floor was measured. Beside speed it takes the place of
    the bits per weight, which the size tells as well. Goodput takes that of MFU where there is an
    SLO. Where engines were compared and no quality was measured, their figures take the place of
    the loss, and of MFU and MBU, which count work that a cache saves. Where rows differ in their
    recipe or backend, these have columns.
    """
    return tuple(COLUMNS[name] for name in _names(rows))


def chosen_columns(names: Sequence[str], rows: Sequence[Row]) -> tuple[Column, ...]:
    """The keys that tell the rows apart, and the chosen columns and groups of columns.

    Columns of a group that are empty in all rows are left out. Raises UsageError for a name that
    is neither.
    """
    return tuple(dict.fromkeys([*_keys(rows), *_chosen(names, rows)]))


def _chosen(names: Sequence[str], rows: Sequence[Row]) -> Iterator[Column]:
    for name in names:
        if name in GROUPS:
            columns = [COLUMNS[each] for each in GROUPS[name]]
            yield from (c for c in columns if any(c.text(row) != MISSING for row in rows))
        elif name in COLUMNS and name != _INTERNAL:
            yield COLUMNS[name]
        else:
            known = ", ".join(each for each in COLUMNS if each != _INTERNAL)
            raise UsageError(
                f"There is no column {name!r}",
                f"Groups are {', '.join(GROUPS)}; columns are {known}.",
            )


def _keys(rows: Sequence[Row]) -> Iterator[Column]:
    yield COLUMNS["target"]
    for name in ("recipe", "backend"):
        if _differ(rows, COLUMNS[name]):
            yield COLUMNS[name]
    if any(row.load is not None for row in rows):
        yield COLUMNS[_load_column(rows)]


def _names(rows: Sequence[Row]) -> Iterator[str]:
    yield "target"
    yield from (name for name in ("recipe", "backend") if _differ(rows, COLUMNS[name]))
    judged = any(row.quality is not None and row.quality.verdict is not None for row in rows)
    verdict = ("noise",) if judged else ()
    if all(row.load is None for row in rows):
        yield from _engine_of(rows)
        yield from ("linear_bits", "size", "kld_or_status", *_LOSS, *verdict, *_cost_of(rows))
        return
    yield _load_column(rows)
    engine = _engine_columns(rows)
    if engine:
        yield from ("lengths",) if _differ(rows, COLUMNS["lengths"]) else ()
        yield from ("size", *engine, *_SPEED)
        return
    yield from ("size", *(() if judged else ("bits",)), "kld", *_LOSS, *verdict, *_SPEED)
    yield "goodput" if any(row.load and row.load.slo for row in rows) else "mfu"
    yield "mbu"


def _load_column(rows: Sequence[Row]) -> str:
    loads = [row.load for row in rows if row.load is not None]
    return "load" if any(load.kind != "closed" for load in loads) else "conc"


def _engine_columns(rows: Sequence[Row]) -> tuple[str, ...]:
    """The figures of engines by which rows under one load differ; none beside quality."""
    if any(row.quality is not None for row in rows):
        return ()
    known = [row for row in rows if row.engine is not None]
    loads = [[row.engine for row in known if row.load == load] for load in _loads(known)]
    return tuple(
        name
        for name in _ENGINE_FIGURES
        if any(differ([each for each in figures if each], name) for figures in loads)
    )


def _loads(rows: Sequence[Row]) -> list[LoadSpec | None]:
    """Each load once."""
    return list(dict.fromkeys(row.load for row in rows))


def _differ(rows: Sequence[Row], column: Column) -> bool:
    return len({column.text(row) for row in rows}) > 1


def _engine_of(rows: Sequence[Row]) -> tuple[str, ...]:
    """The engine, where others than llmopt quantized."""
    engines = {row.quantization.engine for row in rows if row.quantization is not None}
    return ("engine",) if engines - {OWN_ENGINE} else ()


def _cost_of(rows: Sequence[Row]) -> tuple[str, ...]:
    """Time and memory of quantizing, that of a GPU where there was one."""
    made = [row.quantization for row in rows if row.quantization is not None]
    gpu = any(record.device_peak_bytes is not None for record in made)
    host = ("quantize_s", "quantize_memory")
    return (*host, "quantize_gpu_memory") if gpu else host
