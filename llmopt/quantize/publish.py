"""From finished blocks to a checkpoint under its final name.

Knows the journal and the files; knows nothing of how blocks were made.
Law: a checkpoint is published only after it was read back as intended.
"""

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from llmopt.formats.checkpoint import CheckpointWriter
from llmopt.formats.staging import remove_stale, staged_directory
from llmopt.hardware.memory import MemoryMeter
from llmopt.quantize.checks import CheckedJob
from llmopt.quantize.gguf_job import GgufPlan, write_gguf
from llmopt.quantize.identity import RunInputs, source_name
from llmopt.quantize.inspection import Inspector, WrittenCheckpoint
from llmopt.quantize.journal import Journal
from llmopt.quantize.layout import matrix_shapes
from llmopt.quantize.options import QuantizeSummary
from llmopt.quantize.output import (
    RECORD_FILE,
    RUN_FILE,
    published_fingerprint,
    weight_bytes,
    write_checkpoint,
    write_json,
)
from llmopt.quantize.packing import PackedBlock
from llmopt.quantize.record import content_record, run_record


@dataclass(frozen=True, slots=True)
class Publisher:
    """What the checkpoints of a run have in common."""

    inputs: RunInputs
    journal: Journal
    meter: MemoryMeter
    resumed_blocks: int
    device: torch.device
    inspect: Inspector | None = None

    def publish(self, out: Path, checked: CheckedJob) -> QuantizeSummary:
        """Write, verify and rename a job's checkpoint, unless an earlier run had done that."""
        started = time.perf_counter()
        label = checked.job.label
        blocks = [
            self.journal.read_block(label, index) for index in range(self.journal.finished_blocks)
        ]
        if published_fingerprint(out) == self.inputs.fingerprint(checked.job):
            return self._summary(out, label, blocks, out, started)
        remove_stale(out)
        with self.meter.section(label), self._written(out, checked, blocks) as directory:
            write_json(directory / RECORD_FILE, self._record(checked, blocks))
            summary = self._summary(out, label, blocks, directory, started)
            write_json(directory / RUN_FILE, run_record(summary, self.device))
            if self.inspect is not None:
                self.inspect(self._written_checkpoint(directory, checked, summary))
        return summary

    def _written_checkpoint(
        self, directory: Path, checked: CheckedJob, summary: QuantizeSummary
    ) -> WrittenCheckpoint:
        reader = self.inputs.reader
        return WrittenCheckpoint(
            directory=directory,
            source=reader.path,
            source_bytes=reader.num_bytes,
            source_sha256=self.inputs.source_sha256,
            job=checked.job,
            summary=summary,
            shapes=matrix_shapes(
                {name: reader.shape(name) for name in reader.names()},
                [record.name for record in summary.modules],
            ),
        )

    @contextmanager
    def _written(
        self, out: Path, checked: CheckedJob, blocks: Sequence[PackedBlock]
    ) -> Iterator[Path]:
        """Write the weights and yield the directory before it gets its name."""
        if isinstance(checked.storage, GgufPlan):
            with staged_directory(out) as staging:
                name = f"{source_name(self.inputs.reader.path)}-{checked.storage.mix.upper()}.gguf"
                data, reader = self.inputs.calibration, self.inputs.reader
                write_gguf(staging / name, checked.storage, reader, blocks, data)
                yield staging
        else:
            with CheckpointWriter(out) as writer:
                method = checked.job.scheme.method
                write_checkpoint(writer, checked.storage, method, self.inputs.reader, blocks)
                yield writer.staging

    def _record(self, checked: CheckedJob, blocks: Sequence[PackedBlock]) -> dict[str, Any]:
        records = [module.record for block in blocks for module in block.modules]
        return content_record(self.inputs, checked.job, records)

    def _summary(
        self,
        out: Path,
        label: str,
        blocks: Sequence[PackedBlock],
        written: Path,
        started: float,
    ) -> QuantizeSummary:
        modules = [module for block in blocks for module in block.modules]
        num_weights = sum(module.num_weights for module in modules)
        return QuantizeSummary(
            out=out,
            scheme=label,
            seconds=sum(block.seconds for block in blocks) + time.perf_counter() - started,
            shared_seconds=sum(block.shared_seconds for block in blocks),
            modules=tuple(module.record for module in modules),
            bits_per_weight=8 * sum(module.num_bytes for module in modules) / max(num_weights, 1),
            file_bytes=weight_bytes(written),
            peak_memory=self.meter.peak(label),
            resumed_blocks=self.resumed_blocks,
        )
