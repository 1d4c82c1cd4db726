"""A recipe, from beginning to end: prepare, examine, measure, write one result per cell.

Knows nothing about terminals. The laws: a cell that fails becomes a result that says why, and the
others go on; a sweep that is interrupted goes on at the run where it stopped; repeats are
interleaved over the cells, so that a machine that drifts drifts for all of them.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from llmopt.bench.cells import OpenCell, close_cell, open_cell
from llmopt.bench.dummy import ByteTokenizer, tokenizer_of
from llmopt.bench.examine import QualityComparison, examine_weights
from llmopt.bench.failures import describe
from llmopt.bench.loaded import LoadedModels
from llmopt.bench.observer import Observer, open_stage
from llmopt.bench.prepare import PreparedTarget, prepare_targets
from llmopt.bench.run_progress import RunProgress
from llmopt.bench.site import Site, survey
from llmopt.bench.slo_search import Probe
from llmopt.bench.speed import Served, find_rate, measure_run
from llmopt.bench.workload_prompts import UserPrompt, read_prompts
from llmopt.data import read_text
from llmopt.models.loader import resolve_device
from llmopt.models.tokenizer import Tokenizer
from llmopt.recipe.schema import Recipe, Target, all_targets, cells
from llmopt.results.files import make_directory
from llmopt.results.journal import drop_partial
from llmopt.results.store import write_once

USUAL_PROBES = 8  # of a search for a rate: three or four on either side of the first bracket


def run_recipe(
    recipe: Recipe, out_dir: Path, work_dir: Path, observer: Observer, *, device: str = "cpu"
) -> list[Path]:
    """Measure every cell and return the paths of the result files, in the order of the cells.

    Result files and journals go to `out_dir`, quantized checkpoints to `work_dir`. Raises when
    nothing can be measured: there is no such device, the base cannot be prepared or the quality
    text is unfit (`LLMOptError`), or `out_dir` cannot be written (`OutputError`).
    `KeyboardInterrupt` passes through with all finished runs in the journals.
    """
    resolve_device(device)
    make_directory(out_dir)
    sweep = _Sweep(recipe, out_dir, work_dir, observer, device, LoadedModels.on(device))
    sweep.prepare()
    with open_stage(observer, "measure the machine"):
        site = survey(device, measure=bool(recipe.loads))
    sweep.open_cells(site)
    sweep.examine()
    if recipe.loads:
        sweep.find_rates()
        sweep.measure_speed()
    return sweep.write(site)


@dataclass(slots=True)
class _Sweep:
    recipe: Recipe
    out_dir: Path
    work_dir: Path
    observer: Observer
    device: str
    models: LoadedModels
    prepared: dict[Target, PreparedTarget | str] = field(default_factory=dict)  # or why not
    cells: list[OpenCell] = field(default_factory=list)
    texts: dict[Path, list[int]] = field(default_factory=dict)
    user_prompts: dict[tuple[Path, str], list[UserPrompt]] = field(default_factory=dict)

    def prepare(self) -> None:
        """Get every target's checkpoint; without the base there is nothing to compare with."""
        base, *others = all_targets(self.recipe)
        outcomes = self._prepare([base])
        if isinstance(found := outcomes[base], Exception):
            raise found
        outcomes |= self._prepare(others)
        for target in (base, *others):
            outcome = outcomes[target]
            self.prepared[target] = describe(outcome) if isinstance(outcome, Exception) else outcome

    def open_cells(self, site: Site) -> None:
        """Take up the journals; cells of targets that could not be prepared fail here."""
        for cell in cells(self.recipe):
            prepared = self.prepared[cell.target]
            opened = open_cell(
                self.recipe,
                cell,
                prepared,
                site.environment,
                self.out_dir,
            )
            self.cells.append(opened)
            if opened.error is not None:
                self.observer.cell_failed(cell.cell_id, opened.error)

    def examine(self) -> None:
        """Facts and quality of each target, into all of its cells."""
        comparison = self._comparison()
        base = self.recipe.base.as_target()
        for target, prepared in self.prepared.items():
            members = [opened for opened in self.cells if opened.cell.target == target]
            if isinstance(prepared, str):
                continue
            with open_stage(self.observer, f"examine {target.name}"), self._failing(members):
                facts, cost = examine_weights(prepared, self.models)
                for opened in members:
                    opened.model, opened.cost = facts, cost
                quality = next((c.quality for c in members if c.quality is not None), None)
                is_scored = target != base and target.dummy_config is None
                if quality is None and comparison is not None and is_scored:
                    quality = comparison.measure(prepared, self._advance_windows)
                for opened in members:
                    opened.quality = quality
            for opened in members:
                opened.save(self.out_dir)

    def find_rates(self) -> None:
        """The highest rate of every load that has an SLO in place of a rate."""
        for opened in self.cells:
            load = opened.cell.load
            if load is None or not load.is_searched or opened.plan is None or opened.error:
                continue
            with (
                open_stage(self.observer, f"search the rate of {opened.cell.cell_id}"),
                self._failing([opened]),
            ):
                probes: list[Probe] = []
                found = find_rate(
                    self._served(opened),
                    opened.plan,
                    seed=self.recipe.seed,
                    repeats=self.recipe.repeats,
                    on_probe=partial(self._show_probe, probes),
                )
                assert found.rate is not None, "a search that finds nothing raises"
                opened.plan = opened.plan.at_rate(found.rate)

    def measure_speed(self) -> None:
        """All runs that are not in a journal, repeat by repeat, load by load, target by target."""
        loaded = [(opened, opened.plan) for opened in self.cells if opened.plan is not None]
        total = self.recipe.repeats * sum(plan.spec.num_requests for _, plan in loaded)
        done = 0
        with open_stage(self.observer, "measure speed"):
            for repeat in range(self.recipe.repeats):
                for index, (opened, plan) in enumerate(loaded, start=1):
                    detail = (
                        f"cell {index} of {len(loaded)}: {opened.cell.cell_id}, "
                        f"run {repeat + 1} of {self.recipe.repeats}"
                    )
                    progress = RunProgress(self.observer, done, total, detail)
                    if opened.error is None and not opened.has_run(repeat):
                        with self._failing([opened]):
                            run = measure_run(
                                self._served(opened),
                                plan,
                                repeat=repeat,
                                seed=self.recipe.seed,
                                on_request=progress,
                            )
                            opened.runs.append(run)
                        opened.save(self.out_dir)
                    done += plan.spec.num_requests

    def write(self, site: Site) -> list[Path]:
        """One result file per cell; the journals go when all of them are there."""
        results = [
            close_cell(opened, self.recipe, site.environment, site.ceilings)
            for opened in self.cells
        ]
        paths = [write_once(self.out_dir, result) for result in results]
        for opened in self.cells:
            drop_partial(self.out_dir, opened.cell.cell_id)
        return paths

    def _prepare(self, targets: Sequence[Target]) -> dict[Target, PreparedTarget | Exception]:
        return prepare_targets(
            self.recipe, targets, self.work_dir, self.observer, device=self.device
        )

    @contextmanager
    def _failing(self, members: Sequence[OpenCell]) -> Iterator[None]:
        """What goes wrong inside is the end of these cells, and of nothing else."""
        try:
            yield
        except Exception as error:
            for opened in members:
                opened.error = describe(error)
                self.observer.cell_failed(opened.cell.cell_id, opened.error)

    def _comparison(self) -> QualityComparison | None:
        """The comparison with the base and its noise floor, if any cell still needs one."""
        base = self.recipe.base.as_target()
        missing = [
            opened
            for opened in self.cells
            if opened.error is None and opened.quality is None and opened.cell.target != base
        ]
        prepared = self.prepared[base]
        assert not isinstance(prepared, str), "a sweep without its base ends at once"
        if self.recipe.quality is None or not missing or base.dummy_config is not None:
            return None
        comparison = QualityComparison(self.recipe.quality, prepared, self.models)
        if comparison.has_noise:
            with open_stage(self.observer, "measure the noise floor"):
                comparison.measure_noise(self._advance_windows)
        return comparison

    def _served(self, opened: OpenCell) -> Served:
        prepared = self.prepared[opened.cell.target]
        assert not isinstance(prepared, str), "a cell without a checkpoint has an error"
        assert opened.cell.load is not None, "a cell that serves has a load"
        model = prepared.load(self.models)
        tokenizer = tokenizer_of(prepared.target, prepared.path, model.config.vocab_size)
        prompts = opened.cell.load.workload.prompts
        return Served(
            model,
            self._text(prepared.path, tokenizer),
            self._user_prompts(prepared.path, prompts, tokenizer),
            prepared.target.engine,
        )

    def _user_prompts(
        self, path: Path, file: str | None, tokenizer: Tokenizer | ByteTokenizer
    ) -> list[UserPrompt]:
        if file is None:
            return []
        if (path, file) not in self.user_prompts:
            self.user_prompts[path, file] = read_prompts(file, tokenizer.encode)
        return self.user_prompts[path, file]

    def _text(self, path: Path, tokenizer: Tokenizer | ByteTokenizer) -> list[int]:
        if path not in self.texts:
            self.texts[path] = tokenizer.encode(read_text("evaluation"), add_special_tokens=False)
        return self.texts[path]

    def _advance_windows(self, done: int, total: int) -> None:
        self.observer.stage_advanced(done, total, "windows of text")

    def _show_probe(self, probes: list[Probe], probe: Probe) -> None:
        probes.append(probe)
        verdict = "holds" if probe.holds else "fails"
        total = max(USUAL_PROBES, len(probes) + 1)
        self.observer.stage_advanced(len(probes), total, f"{probe.rate:.3g} requests/s {verdict}")
