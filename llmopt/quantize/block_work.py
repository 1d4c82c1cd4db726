"""One decoder block after the other, for all jobs at once.

The source's block runs once on the calibration tokens for all jobs that calibrate on the source,
or not at all where the cache has its statistics; a job that calibrates on its own quantized prefix
runs its own view of the block. Knows nothing of how finished blocks are kept.
Law: what a job makes does not depend on which other jobs run beside it.
"""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from llmopt.hardware.memory import MemoryMeter
from llmopt.models.decoder import DecoderBlock
from llmopt.models.loader import ModelLoader
from llmopt.quantize.block_stream import BlockStream, Inputs
from llmopt.quantize.block_task import (
    BlockQuantizer,
    BlockTask,
    HeadTask,
    column_scales,
    rounded_layer,
    view_of,
)
from llmopt.quantize.folding import dense
from llmopt.quantize.layout import Place, block_modules, head_modules
from llmopt.quantize.options import Job, ModuleRecord
from llmopt.quantize.packing import PackedBlock, Packer, pack_block
from llmopt.quantize.statistics import InputStatistics, Wanted, gather
from llmopt.quantize.statistics_cache import StatisticsCache

_HOST = torch.device("cpu")
_SCALED = (Place.QKV, Place.GATE_UP)  # the first layers of the attention and of the MLP


@dataclass(frozen=True, slots=True)
class JobWork:
    """A job with its method, and how its layers are stored."""

    job: Job
    quantizer: BlockQuantizer
    packer: Packer

    @property
    def reads_source(self) -> bool:
        """Whether it needs statistics of the source's layers."""
        return self.quantizer.needs.statistics and not self.job.has_own_prefix


@dataclass(slots=True)
class SourceStream:
    """The hidden states of the unquantized model, moved on only when something asks for them.

    hidden: [T, C], those that enter `block`; None as long as nothing was computed
    """

    loader: ModelLoader
    stream: BlockStream
    tokens: Tensor
    block: int = 0
    hidden: Tensor | None = None

    def embedded(self) -> Tensor:
        """The hidden states [T, C] that enter the first block."""
        return self.stream.embed(self.tokens)

    def entering(self, index: int) -> Tensor:
        """The hidden states [T, C] that enter block `index`, or leave the last block; runs those
        before it that have not run yet.
        """
        if self.hidden is None:
            self.hidden, self.block = self.embedded(), 0
        while self.block < index:
            for _ in self.stream.walk(self.loader.block(self.block), self.hidden):
                pass
            self.block += 1
        assert self.block == index, "blocks run in order"
        return self.hidden

    def walk(self, index: int, block: DecoderBlock) -> Iterator[tuple[Place, Inputs]]:
        """Run block `index` as `BlockStream.walk`."""
        yield from self.stream.walk(block, self.entering(index))
        self.block += 1


@dataclass(frozen=True, slots=True)
class BlockWork:
    """Everything that stays the same from block to block.

    source: None where no job looks at data
    sample_rows: the tokens of which inputs themselves are kept
    on_module: called with the scheme, the block and the record of each module that is done
    """

    loader: ModelLoader
    jobs: Sequence[JobWork]
    source: SourceStream | None
    sample_rows: Tensor | None
    cache: StatisticsCache | None
    on_module: Callable[[str, int, ModuleRecord], None]
    meter: MemoryMeter

    @property
    def needs_hessian(self) -> bool:
        """Whether a job needs the Hessians of the source's layers."""
        return any(work.reads_source and work.quantizer.needs.hessian for work in self.jobs)

    @property
    def num_steps(self) -> int:
        """How many blocks there are to run, the output head, if a job wants it, being the last."""
        return self.loader.config.num_layers + any(work.job.lm_head for work in self.jobs)

    def run(self, index: int, hidden: Mapping[str, Tensor]) -> dict[str, PackedBlock]:
        """Quantize a block for every job: scheme -> block.

        hidden: the hidden states [T, C] that enter the block, by scheme, of each job that has its
        own; they are moved through the block in place.
        """
        if index == self.loader.config.num_layers:
            return {work.job.label: self._run_head(index, work, hidden) for work in self.jobs}
        started = time.perf_counter()
        block = self.loader.block(index)
        modules = block_modules(self.loader.config, index)
        entries = [
            _Entry(work, BlockTask(index, view_of(block), modules), self.on_module, self.meter)
            for work in self.jobs
        ]
        readers = [entry for entry in entries if entry.work.reads_source]
        followers = [entry for entry in entries if entry.work.quantizer.needs.originals]
        others = [entry for entry in entries if entry not in readers + followers]
        self._run_on_source(block, readers, {entry: hidden[entry.label] for entry in followers})
        packed = {entry.label: entry.pack() for entry in readers + followers}
        del block, entries, readers, followers  # layers are released as they are replaced
        while others:
            entry = others.pop(0)
            with entry.at_work():
                if entry.work.job.has_own_prefix:
                    self._run_with_prefix(entry, hidden[entry.label])
                else:
                    for place in Place:
                        entry.round(place, None)
            packed[entry.label] = entry.pack()
        seconds = time.perf_counter() - started
        shared = seconds - sum(each.seconds for each in packed.values())
        return {
            label: replace(packed[label], shared_seconds=shared)
            for label in (work.job.label for work in self.jobs)
        }

    def _run_head(self, index: int, work: JobWork, hidden: Mapping[str, Tensor]) -> PackedBlock:
        """Quantize the output head for a job, if it wants it."""
        label, needs, started = work.job.label, work.quantizer.needs, time.perf_counter()
        if not work.job.lm_head:
            return pack_block(work.packer, ())
        modules = head_modules(self.loader.config)
        with self.meter.section(label):
            statistics = None
            if needs.statistics:
                assert self.source is not None, "calibration is checked before"
                stream, norm = self.source.stream, self.loader.final_norm()
                own = work.job.has_own_prefix
                states = hidden[label] if own else self.source.entering(index)
                originals = self.source.entering(index) if needs.originals else None
                statistics = gather(
                    stream.normed(norm, states),
                    stream.num_tokens,
                    Wanted(needs.hessian),
                    modules.name,
                    None if originals is None else stream.normed(norm, originals),
                )
            task = HeadTask(index, dense(self.loader.lm_head()), (modules,) * len(Place))
            finished = work.quantizer.round(task, Place.DOWN, statistics)
            packed = pack_block(work.packer, finished)
        for module in finished:
            self.on_module(label, index, module.record)
        return replace(packed, seconds=time.perf_counter() - started)

    def _run_on_source(
        self,
        block: DecoderBlock,
        readers: Sequence["_Entry"],
        followers: Mapping["_Entry", Tensor],
    ) -> None:
        """Serve the jobs that calibrate on the source, and those that compare their own hidden
        states [T, C] with the source's, layer by layer.
        """
        if not readers and not followers:
            return
        assert self.source is not None, "calibration is checked before"
        task, stream = next(iter([*readers, *followers])).task, self.source.stream
        cached = bool(readers) and self._serve_from_cache(block, task, readers)
        walks = [(e, stream.walk(e.task.block, hidden)) for e, hidden in followers.items()]
        if walks or not cached:
            for place, inputs in self.source.walk(task.index, block):
                if readers and not cached:
                    _serve(place, self._gather(task, place, inputs), block, readers)
                for entry, walk in walks:
                    with entry.at_work():
                        entry.round_beside(place, walk, inputs, stream.num_tokens)
        for entry, walk in walks:
            with entry.at_work():
                assert next(walk, None) is None, "the last layer ends the block"

    def _serve_from_cache(
        self, block: DecoderBlock, task: BlockTask, readers: Sequence["_Entry"]
    ) -> bool:
        """Serve the statistics of the source's layers, if the cache has them."""
        hessian = self.needs_hessian
        if self.cache is None or not self.cache.is_whole(task.index, hessian=hessian):
            return False
        for place in Place:
            statistics = self.cache.read(task.index, place, hessian=hessian)
            _serve(place, statistics.to(self.loader.device), block, readers)
        return True

    def _gather(self, task: BlockTask, place: Place, inputs: Inputs) -> InputStatistics:
        """Sum up the inputs of one of the source's layers, and keep the sums in the cache."""
        assert self.source is not None, "calibration is checked before"
        wanted = Wanted(self.needs_hessian, self.sample_rows if place in _SCALED else None)
        name, num_tokens = task.modules[place].name, self.source.stream.num_tokens
        statistics = gather(inputs(), num_tokens, wanted, name)
        if self.cache is not None:
            self.cache.write(task.index, place, statistics)
        return statistics

    def _run_with_prefix(self, entry: "_Entry", hidden: Tensor) -> None:
        assert self.source is not None, "calibration is checked before"
        task, quantizer, stream = entry.task, entry.work.quantizer, self.source.stream

        for place, inputs in stream.walk(task.block, hidden):
            name = task.modules[place].name
            if quantizer.needs.scaling and place in _SCALED:
                wanted = Wanted(sample_rows=self.sample_rows)
                quantizer.scale(task, place, gather(inputs(), stream.num_tokens, wanted, name))
            wanted = Wanted(quantizer.needs.hessian)
            entry.round(place, gather(inputs(), stream.num_tokens, wanted, name))


@dataclass(slots=True, eq=False)
class _Entry:
    """A job at work on its view of one block."""

    work: JobWork
    task: BlockTask
    on_module: Callable[[str, int, ModuleRecord], None]
    meter: MemoryMeter
    seconds: float = 0.0

    @property
    def label(self) -> str:
        return self.work.job.label

    @contextmanager
    def at_work(self) -> Iterator[None]:
        """Count time and memory for this job."""
        started = time.perf_counter()
        with self.meter.section(self.label):
            yield
        self.seconds += time.perf_counter() - started

    def round(self, place: Place, statistics: InputStatistics | None) -> None:
        """Round a layer; what runs after it then sees the rounded one."""
        modules = self.work.quantizer.round(self.task, place, statistics)
        if modules and self.work.job.has_own_prefix:
            self.task.replace(place, rounded_layer(self.task.linear(place), modules))
        for module in modules:
            self.task.finished.append(replace(module, weight=module.weight.to(_HOST)))
            self.on_module(self.label, self.task.index, module.record)

    def round_beside(
        self,
        place: Place,
        walk: Iterator[tuple[Place, Inputs]],
        originals: Inputs,
        num_tokens: int,
    ) -> None:
        """Round the next layer of `walk` for its inputs, knowing those that the source has."""
        reached, inputs = next(walk)
        assert reached is place, "all blocks have the same layers"
        wanted = Wanted(self.work.quantizer.needs.hessian)
        name = self.task.modules[place].name
        self.round(place, gather(inputs(), num_tokens, wanted, name, originals()))

    def pack(self) -> PackedBlock:
        """What the job made of the block."""
        with self.at_work():
            packed = pack_block(self.work.packer, self.task.finished)
        return replace(packed, seconds=self.seconds)

    def round_on_source(
        self, place: Place, block: DecoderBlock, statistics: InputStatistics
    ) -> None:
        """Round a layer for the inputs that the source's has, as this job has scaled them."""
        task, quantizer = self.task, self.work.quantizer
        if quantizer.needs.scaling and place in _SCALED:
            quantizer.scale(task, place, statistics)
        (original,), (own,) = block.stages[place], task.block.stages[place]
        if own is not original:
            rows = task.modules[place].undivided_rows
            source = BlockTask(task.index, block, task.modules)
            before, after = (t.linear(place).weight[:rows] for t in (source, task))
            statistics = statistics.scaled(column_scales(before, after))
        self.round(place, statistics)
        task.replace(place, original)  # the scaled weight is not needed any more


def _serve(
    place: Place, statistics: InputStatistics, block: DecoderBlock, readers: Sequence[_Entry]
) -> None:
    for entry in readers:
        with entry.at_work():
            entry.round_on_source(place, block, statistics)
