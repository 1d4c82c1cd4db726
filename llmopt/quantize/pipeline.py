"""From a full-precision checkpoint to quantized ones.

Strings the parts together: checks, one block after the other for all jobs, files, read-back.
Laws: nothing is started that cannot be finished; no output directory exists until it is complete;
finished blocks outlive the process.
"""

from collections.abc import Mapping
from pathlib import Path

from llmopt.formats.staging import check_writable
from llmopt.hardware.memory import MemoryMeter
from llmopt.quantize.block_run import run_blocks
from llmopt.quantize.identity import RunInputs, run_fingerprint
from llmopt.quantize.inspection import Inspector
from llmopt.quantize.journal import Journal, journal_path
from llmopt.quantize.options import (
    Job,
    QuantizeObserver,
    QuantizeOptions,
    QuantizeSummary,
    RunOptions,
    SilentObserver,
)
from llmopt.quantize.output import published_fingerprint
from llmopt.quantize.publish import Publisher
from llmopt.quantize.setup import Setup, set_up


def quantize_checkpoint(
    source: Path,
    out: Path,
    options: QuantizeOptions,
    *,
    observer: QuantizeObserver | None = None,
) -> QuantizeSummary:
    """Run one job of a uniform method on the CPU: `quantize_jobs` for the simplest case."""
    run = RunOptions(calibration=options.calibration)
    return quantize_jobs(source, {out: options.job}, journal_path(out), run, observer)[0]


def quantize_jobs(
    source: Path,
    outputs: Mapping[Path, Job],
    journal: Path,
    run: RunOptions,
    observer: QuantizeObserver | None = None,
    inspect: Inspector | None = None,
) -> tuple[QuantizeSummary, ...]:
    """Quantize the linear layers of the decoder blocks for each job and write its checkpoint.

    Embeddings, norms and the output head are copied bit for bit, but for the norms and biases that
    scales are folded into. The same source, job and calibration give the same bytes (but for
    quantization-run.json), whatever other jobs there are. Memory: about two blocks and the
    statistics of one layer on the device, the hidden states of all calibration tokens on the host.
    Finished blocks are kept in `journal`, and the same call goes on after them. `inspect` sees
    every checkpoint before it gets its name, and refuses it by raising.

    Raises `QuantizationError` (impossible group size, a format that cannot hold the scheme, source
    quantized already, weights that are not finite), `UsageError` (no calibration tokens for a
    method that needs them), `CheckpointError`, `ModelError` and `OutputError` (the output exists,
    the disk is full, the journal of another run is in the way).
    """
    observer = observer or SilentObserver()
    for out in outputs:
        if out.exists() and not journal.exists():  # else it may be this very run's
            check_writable(out, expected_bytes=0)
    setup = set_up(source, list(outputs.values()), run, observer)
    fingerprint = run_fingerprint([setup.inputs.fingerprint(job) for job in outputs.values()])
    schemes = [job.label for job in outputs.values()]
    with (
        MemoryMeter(setup.loader.device) as meter,
        Journal(journal, fingerprint, schemes, restart=run.restart) as kept,
    ):
        resumed = kept.finished_blocks
        total = sum(each.size.total_bytes for each in setup.checked) + setup.journal_bytes
        _check_outputs(outputs, setup.inputs, 0 if resumed else total)
        _quantize_blocks(setup, meter, kept, observer)
        device = setup.loader.device
        publisher = Publisher(setup.inputs, kept, meter, resumed, device, inspect)
        summaries = []
        for out, checked in zip(outputs, setup.checked, strict=True):
            observer.stage_started(f"write {checked.job.label}")
            summaries.append(publisher.publish(out, checked))
        return tuple(summaries)


def _check_outputs(outputs: Mapping[Path, Job], inputs: RunInputs, expected_bytes: int) -> None:
    for out, job in outputs.items():
        if published_fingerprint(out) != inputs.fingerprint(job):
            check_writable(out, expected_bytes)


def _quantize_blocks(
    setup: Setup, meter: MemoryMeter, journal: Journal, observer: QuantizeObserver
) -> None:
    resumed, num_blocks = journal.finished_blocks, setup.num_blocks
    if resumed:
        observer.note(f"{journal.path} has {resumed} of {num_blocks} blocks; going on after them")
    work = setup.work(meter, observer)
    done = setup.num_modules * min(resumed, num_blocks) // num_blocks
    observer.blocks_started(done, setup.num_modules)
    try:
        run_blocks(work, journal, work.num_steps, observer)
    except KeyboardInterrupt:
        if journal.finished_blocks:
            observer.note(
                f"{journal.finished_blocks} of {num_blocks} blocks are kept in {journal.path}: "
                "the same command goes on after them"
            )
        raise
