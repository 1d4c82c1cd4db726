"""What a run will cost: its first blocks are done for real, the rest is extrapolated.

Works on a journal of its own, which it removes. Knows nothing of how results are shown.
Law: what was measured and what was computed are told apart.
"""

import os
import shutil
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llmopt.formats.gguf_blocks import GgufWeight
from llmopt.formats.quantized import StoredWeight
from llmopt.formats.staging import output_errors
from llmopt.hardware.memory import MemoryMeter, PeakMemory
from llmopt.models.config import ModelConfig
from llmopt.quantize.block_run import run_blocks
from llmopt.quantize.block_work import BlockWork
from llmopt.quantize.checks import CheckedJob, SourceFacts, check_jobs
from llmopt.quantize.disk import journal_bytes
from llmopt.quantize.footprint import Footprint, footprint
from llmopt.quantize.gguf_encode import encode
from llmopt.quantize.gguf_job import GgufPlan
from llmopt.quantize.journal import Journal
from llmopt.quantize.layout import Place, block_modules, layer_widths
from llmopt.quantize.options import Job, QuantizeObserver, RunOptions, SilentObserver
from llmopt.quantize.packing import PackedBlock, PackedModule, weight_digest
from llmopt.quantize.setup import Setup, set_up
from llmopt.quantize.statistics_cache import cache_bytes
from llmopt.quantize.storage import check_format

_SECOND_BLOCK_LIMIT_S = 60.0  # where the first block took longer, it stands for all the others
_PROBE_BYTES, _PROBE_WRITES = 4 << 20, 16
_PROBE_ROWS = 1024
_FINISHED_READS = 3  # a copied tensor is read, written, read again and compared


@dataclass(frozen=True, slots=True)
class PlannedOutput:
    """A checkpoint that would be made.

    seconds: of its own work in the blocks and for its files; None without weights
    """

    scheme: str
    bits_per_weight: float
    file_bytes: int
    seconds: float | None


@dataclass(frozen=True, slots=True)
class Plan:
    """What a run would cost.

    measured_blocks: those that were done for real; 0 without weights, and then
    phases: seconds of each phase, are empty
    peak: measured over these blocks; footprint: the same by arithmetic
    output_bytes, journal_bytes, cache_bytes: on the disk; the journal is removed at the end
    """

    num_blocks: int
    num_tokens: int
    measured_blocks: int
    phases: Mapping[str, float]
    outputs: tuple[PlannedOutput, ...]
    peak: PeakMemory | None
    footprint: Footprint
    output_bytes: int
    journal_bytes: int
    cache_bytes: int

    @property
    def seconds(self) -> float | None:
        """Of the whole run; None without weights."""
        return sum(self.phases.values()) if self.phases else None


def plan_config(hf_config: Mapping[str, Any], jobs: list[Job], num_tokens: int) -> Plan:
    """Compute what a run would need from config.json alone; how long it takes stays unknown.

    Raises `QuantizationError`, `ModelError`.
    """
    for job in jobs:
        check_format(job)
    checked = check_jobs(SourceFacts.of_config(hf_config), jobs)
    config = ModelConfig.from_hf(hf_config)
    sizes = [each.size for each in checked]
    streams = 1 + sum(job.has_own_prefix for job in jobs)
    outputs = tuple(
        PlannedOutput(each.job.label, each.size.bits_per_weight, each.size.total_bytes, None)
        for each in checked
    )
    return Plan(
        num_blocks=config.num_layers,
        num_tokens=num_tokens,
        measured_blocks=0,
        phases={},
        outputs=outputs,
        peak=None,
        footprint=footprint(config, jobs, num_tokens),
        output_bytes=sum(size.total_bytes for size in sizes),
        journal_bytes=journal_bytes(sizes, 4 * num_tokens * config.hidden_size, streams),
        cache_bytes=0,
    )


def plan_jobs(
    source: Path,
    outputs: Mapping[Path, Job],
    run: RunOptions,
    observer: QuantizeObserver | None = None,
) -> Plan:
    """Run the first block, and the second if that was quick, and extrapolate to all of them.

    Raises what `quantize_jobs` raises, but for outputs that exist.
    """
    observer = observer or SilentObserver()
    started = time.perf_counter()
    setup = set_up(source, list(outputs.values()), run, observer)
    phases = {"check and hash the source": time.perf_counter() - started}
    with _work_directory(next(iter(outputs))) as directory:
        schemes = [each.job.label for each in setup.checked]
        with (
            MemoryMeter(setup.loader.device) as meter,
            Journal(directory / "journal", "plan", schemes) as journal,
        ):
            work = setup.work(meter, observer)
            observer.blocks_started(0, 0)
            block_s, startup_s = _time_blocks(work, setup.num_blocks, journal, observer)
            measured = journal.finished_blocks
            blocks = {label: journal.read_block(label, measured - 1) for label in schemes}
            observer.stage_started("estimate the rest")
            rate = _write_rate(directory / "probe")
            writing = {
                each.job.label: _publish_seconds(setup, each, blocks[each.job.label], rate)
                for each in setup.checked
            }
            peak = meter.peak()
    num_blocks = setup.num_blocks
    own = {
        each.job.label: blocks[each.job.label].seconds * (num_blocks + _head_share(setup, each))
        for each in setup.checked
    }
    phases["start, embed the calibration tokens"] = startup_s
    phases["read blocks, statistics of the source"] = block_s * num_blocks - sum(own.values())
    phases |= {f"quantize to {label}": seconds for label, seconds in own.items()}
    phases |= {f"write {label}": seconds for label, seconds in writing.items()}
    seconds = {label: own[label] + writing[label] for label in schemes}
    cached = 0
    if work.cache is not None and work.sample_rows is not None:
        sample_tokens = len(work.sample_rows)
        cached = cache_bytes(setup.loader.config, sample_tokens, hessian=work.needs_hessian)
    return _plan_of(setup, phases, seconds, measured, peak, cached)


def _plan_of(
    setup: Setup,
    phases: Mapping[str, float],
    seconds: Mapping[str, float],
    measured: int,
    peak: PeakMemory,
    cached_bytes: int,
) -> Plan:
    data = setup.inputs.calibration
    num_tokens = 0 if data is None else data.tokens.numel()
    outputs = tuple(
        PlannedOutput(
            each.job.label,
            each.size.bits_per_weight,
            each.size.total_bytes,
            seconds[each.job.label],
        )
        for each in setup.checked
    )
    jobs = [each.job for each in setup.checked]
    return Plan(
        num_blocks=setup.num_blocks,
        num_tokens=num_tokens,
        measured_blocks=measured,
        phases=phases,
        outputs=outputs,
        peak=peak,
        footprint=footprint(setup.loader.config, jobs, num_tokens),
        output_bytes=sum(output.file_bytes for output in outputs),
        journal_bytes=setup.journal_bytes,
        cache_bytes=cached_bytes,
    )


def _time_blocks(
    work: BlockWork, num_blocks: int, journal: Journal, observer: QuantizeObserver
) -> tuple[float, float]:
    """Return the seconds of a block, and what the first one took besides."""
    started = time.perf_counter()
    run_blocks(work, journal, 1, observer)
    first_s = time.perf_counter() - started
    if num_blocks == 1 or first_s > _SECOND_BLOCK_LIMIT_S:
        return first_s, 0.0
    started = time.perf_counter()
    run_blocks(work, journal, 2, observer)
    block_s = time.perf_counter() - started
    return block_s, max(0.0, first_s - block_s)


def _publish_seconds(
    setup: Setup, checked: CheckedJob, block: PackedBlock, write_rate: float
) -> float:
    """Estimate how long the files of a job take, from one of its blocks."""
    started = time.perf_counter()
    for module in block.modules:
        weight_digest(_stored(checked, block, module))
    verify_s = setup.num_blocks * (time.perf_counter() - started)
    size = checked.size
    write_s = (size.total_bytes + _FINISHED_READS * size.copied_bytes) / write_rate
    return verify_s + write_s + _head_seconds(setup, checked)


def _stored(checked: CheckedJob, block: PackedBlock, module: PackedModule) -> StoredWeight:
    """A module of a packed block, as it will be read back."""
    name, storage = module.record.name, checked.storage
    if isinstance(storage, GgufPlan):
        shape = storage.shapes[f"{name}.weight"]
        kind = storage.type_of(f"{name}.weight")
        return GgufWeight(block.tensors[f"{name}.weight"], kind, (shape[0], shape[1]))
    return storage.unpack(name, block.tensors.__getitem__)


def _head_share(setup: Setup, checked: CheckedJob) -> float:
    """Return how many blocks the output head is worth, where it is quantized like one."""
    config = setup.loader.config
    weights = sum(
        sum(modules.part_rows) * layer_widths(config)[place]
        for place, modules in zip(Place, block_modules(config, 0), strict=True)
    )
    return config.vocab_size * config.hidden_size / weights if checked.job.lm_head else 0.0


def _head_seconds(setup: Setup, checked: CheckedJob) -> float:
    """Estimate the encoding of embedding and head, which only GGUF quantizes, from some rows."""
    seconds = 0.0
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        storage = checked.storage
        if not isinstance(storage, GgufPlan) or storage.type_of(name).layout is None:
            continue
        rows = setup.inputs.reader.tensor(name)[:_PROBE_ROWS].float()
        started = time.perf_counter()
        encode(rows, storage.type_of(name).name, name=name)
        share = storage.shapes[name][0] / len(rows)
        seconds += share * (time.perf_counter() - started)
    return seconds


def _write_rate(path: Path) -> float:
    """Measure how many bytes a second reach the disk."""
    content = os.urandom(_PROBE_BYTES)
    started = time.perf_counter()
    with output_errors(path), path.open("wb") as stream:
        for _ in range(_PROBE_WRITES):
            stream.write(content)
        stream.flush()
        os.fsync(stream.fileno())
    return _PROBE_WRITES * _PROBE_BYTES / (time.perf_counter() - started)


@contextmanager
def _work_directory(out: Path) -> Iterator[Path]:
    """A directory on the disk that `out` will be on."""
    parent = next(path for path in out.absolute().parents if path.exists())
    with output_errors(parent):
        directory = Path(tempfile.mkdtemp(prefix=".plan-", dir=parent))
    try:
        yield directory
    finally:
        shutil.rmtree(directory, ignore_errors=True)
