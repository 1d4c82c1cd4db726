"""A run before its first block: checked, hashed, and its parts brought together.

Knows every part of a run; knows nothing of journals or outputs.
Law: whatever is impossible is refused here, by headers only, before anything is computed.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from llmopt.formats.checkpoint import CheckpointReader
from llmopt.hardware.memory import MemoryMeter
from llmopt.models.loader import ModelLoader
from llmopt.quantize.awq import AWQOptions
from llmopt.quantize.awq_blocks import choose_sample
from llmopt.quantize.block_stream import CHUNK_TOKENS, BlockStream
from llmopt.quantize.block_task import BlockQuantizer
from llmopt.quantize.block_work import BlockWork, JobWork, SourceStream
from llmopt.quantize.checks import (
    CheckedJob,
    SourceFacts,
    check_calibration,
    check_jobs,
    check_window,
)
from llmopt.quantize.disk import journal_bytes
from llmopt.quantize.gguf_job import GgufPlan, GgufQuantizer, check_tokenizer
from llmopt.quantize.identity import RunInputs, calibration_hash, source_hash
from llmopt.quantize.layout import check_source
from llmopt.quantize.options import Job, ModuleFinished, ModuleRecord, QuantizeObserver, RunOptions
from llmopt.quantize.quantizers import MethodContext, make_quantizer
from llmopt.quantize.statistics_cache import StatisticsCache, cache_bytes, statistics_key
from llmopt.quantize.storage import check_format


@dataclass(frozen=True, slots=True)
class Setup:
    """A run that can be done. cache: where statistics of all models are kept, if they are"""

    loader: ModelLoader
    checked: tuple[CheckedJob, ...]
    inputs: RunInputs
    cache: Path | None

    @property
    def num_blocks(self) -> int:
        """Decoder blocks of the model."""
        return self.loader.config.num_layers

    @property
    def num_modules(self) -> int:
        """Modules that will be quantized, of all jobs."""
        return sum(len(each.specs) for each in self.checked)

    @property
    def journal_bytes(self) -> int:
        """What the journal will hold at most."""
        data = self.inputs.calibration
        tokens = 0 if data is None else data.tokens.numel()
        hidden = tokens * self.loader.config.hidden_size * torch.float32.itemsize
        streams = 1 + sum(each.job.has_own_prefix for each in self.checked)
        return journal_bytes([each.size for each in self.checked], hidden, streams)

    def work(self, meter: MemoryMeter, observer: QuantizeObserver) -> BlockWork:
        """Bring jobs, methods, calibration data and cached statistics together."""
        calibration, reader = self.inputs.calibration, self.inputs.reader
        source = sample = rows = None
        if calibration is not None:
            windows, length = calibration.tokens.shape
            stream = BlockStream(self.loader, windows, length)
            source = SourceStream(self.loader, stream, calibration.tokens)
            chosen = choose_sample(windows, length, self._search_tokens())
            rows = torch.arange(windows * length).view(windows, length)[chosen].flatten()
            sample = stream.sequences(len(chosen))
        context = MethodContext(self.loader.config, reader.dtype, sample)
        jobs = [JobWork(each.job, _quantizer(each, context), each.storage) for each in self.checked]

        def on_module(scheme: str, block: int, record: ModuleRecord) -> None:
            observer.module_finished(ModuleFinished(scheme, block, self.num_blocks, record))

        cache = self._open_cache(jobs, rows, observer)
        return BlockWork(self.loader, jobs, source, rows, cache, on_module, meter)

    def _search_tokens(self) -> int:
        asked = [each.job.awq.search_tokens for each in self.checked if each.job.scheme.uses_awq]
        return max(asked, default=AWQOptions().search_tokens)

    def _open_cache(
        self, jobs: Sequence[JobWork], sample_rows: Tensor | None, observer: QuantizeObserver
    ) -> StatisticsCache | None:
        """The cache of this source's statistics, if a job needs them and there is room."""
        readers = [work for work in jobs if work.reads_source]
        if self.cache is None or sample_rows is None or not readers:
            return None
        assert self.inputs.calibration is not None, "samples are of calibration data"
        hessian = any(work.quantizer.needs.hessian for work in readers)
        settings = {
            "source": self.inputs.source_sha256,
            "config": self.inputs.reader.config,
            "calibration": calibration_hash(self.inputs.calibration),
            "chunk_tokens": CHUNK_TOKENS,
            "sample_tokens": len(sample_rows),
            "device": self.loader.device.type,
        }
        cache = StatisticsCache(self.cache / statistics_key(settings))
        if cache.is_whole(self.num_blocks - 1, hessian=hessian):
            observer.note(f"using the statistics of the source in {cache.directory}")
            return cache
        size = cache_bytes(self.loader.config, len(sample_rows), hessian=hessian)
        free = cache.free_bytes()
        if size > free / 2:
            observer.note(
                f"statistics of the source are not kept: they need {size / 1e9:.1f} GB, and "
                f"{free / 1e9:.1f} GB are free in {self.cache}"
            )
            return None
        observer.note(f"keeping statistics of the source ({size / 1e9:.2f} GB) for later runs")
        return cache


def set_up(source: Path, jobs: Sequence[Job], run: RunOptions, observer: QuantizeObserver) -> Setup:
    """Check everything that can be checked, and hash the source.

    Raises `QuantizationError`, `UsageError`, `CheckpointError` and `ModelError`.
    """
    for job in jobs:
        check_format(job)
    reader = CheckpointReader(source)
    check_source(reader)
    checked = check_jobs(SourceFacts.of_checkpoint(reader), jobs)
    check_calibration(jobs, run.calibration)
    for job in jobs:
        if job.scheme.mix is not None:
            check_tokenizer(reader, job.gguf_pre)
    loader = ModelLoader(reader, dtype="float32", device=run.device)
    if run.calibration is not None:
        check_window(loader.config, run.calibration)
    observer.stage_started("hash the source")
    inputs = RunInputs(reader, source_hash(reader), run.calibration, run.device)
    return Setup(loader, checked, inputs, run.cache)


def _quantizer(checked: CheckedJob, context: MethodContext) -> BlockQuantizer:
    if isinstance(checked.storage, GgufPlan):
        return GgufQuantizer(checked.storage)
    return make_quantizer(checked.job, checked.specs, context)
