"""A recipe, from beginning to end: prepare, examine, measure, write one result per cell.

Knows nothing about terminals. The laws: a cell that fails becomes a result that says why, and the
others go on; a sweep that is interrupted goes on at the run where it stopped; repeats are
interleaved over the cells, so that a machine that drifts drifts for all of them.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

from llmopt.bench.cells import OpenCell, close_cell, open_cell
from llmopt.bench.dummy import ByteTokenizer, tokenizer_of
from llmopt.bench.examine import QualityComparison, examine_weights
from llmopt.bench.failures import describe
from llmopt.bench.foreign import examined, is_foreign, refuse, runs_together
from llmopt.bench.foreign_session import ForeignSession, open_session
from llmopt.bench.loaded import LoadedModels
from llmopt.bench.observer import Observer, open_stage
from llmopt.bench.prepare import PreparedTarget, prepare_targets
from llmopt.bench.profile_cells import Profiles, profile_cells
from llmopt.bench.rate_finder import find_rate, require_rate
from llmopt.bench.run_progress import RunProgress, SearchProgress
from llmopt.bench.site import Site, survey
from llmopt.bench.speed import Served, measure_run
from llmopt.bench.stopping import rounds, stopping_record
from llmopt.bench.workload_prompts import UserPrompt, read_prompts
from llmopt.bench.workload_spec import LoadPlan
from llmopt.data import read_text
from llmopt.models.loader import resolve_device
from llmopt.models.tokenizer import Tokenizer
from llmopt.recipe.schema import Recipe, Target, all_targets, cells
from llmopt.results.files import make_directory
from llmopt.results.journal import drop_partial
from llmopt.results.schema import CellResult, RunRecord, SearchJournal, SearchRecord
from llmopt.results.store import write_once


def run_recipe(
    recipe: Recipe,
    out_dir: Path,
    work_dir: Path,
    observer: Observer,
    *,
    device: str = "cpu",
    profile: bool = False,
) -> list[Path]:
    """Measure every cell and return the paths of the result files, in the order of the cells.

    Result files and journals go to `out_dir`, quantized checkpoints to `work_dir`. With `profile`,
    the steps of our own runtime are timed part by part when all runs are done. Raises when
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
        try:
            sweep.find_rates()
            sweep.measure_speed()
        finally:
            sweep.end_others(None)
        if profile:
            sweep.profile(site)
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
    sessions: dict[str, ForeignSession] = field(default_factory=dict)  # by cell
    profiles: Profiles = field(default_factory=dict)

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
            if opened.error is None and not isinstance(prepared, str):
                refusal = refuse(cell, prepared, self.device)
                if refusal is not None:
                    opened.error, opened.skipped = refusal.reason, refusal.skipped
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
                    opened.model, opened.cost = examined(opened.cell, prepared, facts, cost)
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
                opened.search = self._search(opened, opened.plan)
                opened.plan = opened.plan.at_rate(require_rate(opened.search))

    def measure_speed(self) -> None:
        """All runs that are not in a journal, round by round, load by load, target by target."""
        loaded = [(opened, opened.plan) for opened in self.cells if opened.plan is not None]
        per_round = sum(plan.spec.num_requests for _, plan in loaded)
        with open_stage(self.observer, "measure speed"):
            for each in rounds(self.recipe, self.cells):
                done = each.repeat * per_round
                for index, (opened, plan) in enumerate(loaded, start=1):
                    detail = f"cell {index} of {len(loaded)}: {opened.cell.cell_id}, {each.detail}"
                    total = each.expected * per_round
                    progress = RunProgress(self.observer, done, total, detail)
                    for repeat in runs_together(self.recipe, opened.cell, each.repeat):
                        if opened.error is None and not opened.has_run(repeat):
                            with self._failing([opened]):
                                opened.runs.append(self._run(opened, plan, repeat, progress))
                            opened.save(self.out_dir)
                    done += plan.spec.num_requests
        for opened, _ in loaded:
            opened.stopping = stopping_record(self.recipe, opened, self.cells)

    def profile(self, site: Site) -> None:
        """Time the steps of our own cells part by part, which is no run of theirs."""
        assert site.ceilings is not None, "a machine that serves loads was measured"
        self.profiles = profile_cells(self.cells, self._served, site.ceilings, self.observer)

    def write(self, site: Site) -> list[Path]:
        """One result file per cell; the journals go when all of them are there."""
        paths = [write_once(self.out_dir, self._close(opened, site)) for opened in self.cells]
        for opened in self.cells:
            drop_partial(self.out_dir, opened.cell.cell_id)
        return paths

    def _close(self, opened: OpenCell, site: Site) -> CellResult:
        """The result of a cell; runs that no numbers can be derived from are kept, with why."""

        def close() -> CellResult:
            return close_cell(opened, self.recipe, site.environment, site.ceilings)

        with self._failing([opened]):
            return replace(close(), profile=self.profiles.get(opened.cell.cell_id, ()))
        return close()

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

    def _search(self, opened: OpenCell, plan: LoadPlan) -> SearchRecord:
        """The search of a cell's rate, journalled run by run."""

        def keep(journal: SearchJournal) -> None:
            opened.search_journal = journal
            opened.save(self.out_dir)

        return find_rate(
            lambda at_rate, repeat: self._run(opened, at_rate, repeat),
            plan,
            repeats=self.recipe.repeats,
            journal=opened.search_journal,
            on_run=keep,
            on_probe=SearchProgress(self.observer),
        )

    def _run(
        self,
        opened: OpenCell,
        plan: LoadPlan,
        repeat: int,
        progress: RunProgress | None = None,
    ) -> RunRecord:
        served = self._served(opened)
        try:
            return measure_run(
                served,
                plan,
                repeat=repeat,
                seed=self.recipe.seed,
                on_request=progress,
                on_wait=None if progress is None else progress.waiting,
            )
        finally:
            if served.foreign is not None:
                opened.backend = served.foreign.facts

    def _served(self, opened: OpenCell) -> Served:
        prepared = self.prepared[opened.cell.target]
        assert not isinstance(prepared, str), "a cell without a checkpoint has an error"
        assert opened.cell.load is not None, "a cell that serves has a load"
        model = None if is_foreign(opened.cell) else prepared.load(self.models)
        vocab_size = 0 if model is None else model.config.vocab_size  # of random weights only
        tokenizer = tokenizer_of(prepared.target, prepared.path, vocab_size)
        prompts = opened.cell.load.workload.prompts
        return Served(
            model,
            self._text(prepared.path, tokenizer),
            self._user_prompts(prepared.path, prompts, tokenizer),
            prepared.target.engine,
            self._session(opened, prepared, tokenizer),
        )

    def _session(
        self, opened: OpenCell, prepared: PreparedTarget, tokenizer: Tokenizer | ByteTokenizer
    ) -> ForeignSession | None:
        """The runtime of others that serves a cell, with all other such runtimes ended."""
        cell_id = opened.cell.cell_id
        self.end_others(cell_id)
        if not is_foreign(opened.cell):
            return None
        assert isinstance(tokenizer, Tokenizer), "a checkpoint has a tokenizer"
        assert opened.model is not None, "a cell without an error has been examined"
        if cell_id not in self.sessions:
            self.sessions[cell_id] = open_session(
                opened.cell, prepared, opened.model, tokenizer, self.device, self.out_dir
            )
        session = self.sessions[cell_id]
        load, reuse = opened.cell.load, opened.cell.backend.reuse_server
        assert load is not None, "a cell that serves has a load"
        session.keep = reuse or (load.is_searched and opened.search is None)
        session.only_empty = not reuse and load.workload.prompts is not None
        self.models.leave_free(2 * opened.model.file_bytes)
        return session

    def end_others(self, cell_id: str | None) -> None:
        """End every runtime of others but that of one cell."""
        for other, session in self.sessions.items():
            if other != cell_id:
                session.close()

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
