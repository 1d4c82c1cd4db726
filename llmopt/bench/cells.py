"""A cell while it is being measured: what is known of it so far, on disk and in memory.

Knows nothing about the order of a sweep. The law: whatever was measured is in the journal before
anything else is started, and a journal is taken up only for the same cell, weights and machine.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path

from llmopt.bench.failures import describe
from llmopt.bench.foreign import is_foreign, serving_checks, unserved_facts
from llmopt.bench.metrics import summarize_cell
from llmopt.bench.prepare import PreparedTarget
from llmopt.bench.speed import backend_facts
from llmopt.bench.validity import check_cell
from llmopt.bench.workload_spec import LoadPlan, open_load
from llmopt.errors import LLMOptError
from llmopt.recipe.schema import Cell, Recipe, cell_document, to_document
from llmopt.results.codec import to_json
from llmopt.results.journal import fingerprint, load_partial, save_partial
from llmopt.results.schema import (
    BackendFacts,
    Ceilings,
    CellResult,
    CostModel,
    Environment,
    LoadSpec,
    ModelFacts,
    PartialCell,
    QualityRecord,
    QuantizationRecord,
    RunRecord,
    SearchJournal,
    SearchRecord,
    StoppingRecord,
    ValidityCheck,
)


@dataclass(slots=True)
class OpenCell:
    """One cell of a sweep that is under way. `error` set: nothing more is measured on it."""

    cell: Cell
    plan: LoadPlan | None = None  # None: only quality is measured
    fingerprint: str = ""
    runs: list[RunRecord] = field(default_factory=list)
    quality: QualityRecord | None = None
    quantization: QuantizationRecord | None = None
    model: ModelFacts | None = None
    cost: CostModel | None = None
    error: str | None = None
    skipped: bool = False  # the error says that it cannot be
    backend: BackendFacts | None = None  # of a runtime of others that has been opened
    search: SearchRecord | None = None  # of the load's rate
    search_journal: SearchJournal | None = None
    stopping: StoppingRecord | None = None

    @property
    def load(self) -> LoadSpec | None:
        """What a result file says of the load."""
        return None if self.plan is None else self.plan.spec

    def has_run(self, repeat: int) -> bool:
        """Whether this repeat is done."""
        return any(run.repeat == repeat for run in self.runs)

    def save(self, out_dir: Path) -> None:
        """Write the journal. Raises OutputError."""
        save_partial(
            out_dir,
            PartialCell(
                self.fingerprint,
                self.cell.cell_id,
                tuple(self.runs),
                self.quality,
                search=self.search_journal,
                backend=self.backend,
            ),
        )


def open_cell(
    recipe: Recipe,
    cell: Cell,
    prepared: PreparedTarget | str,
    environment: Environment,
    out_dir: Path,
) -> OpenCell:
    """Begin a cell, or go on with it where its journal ends.

    `prepared` is the target's checkpoint, or why there is none.
    """
    opened = OpenCell(cell)
    try:
        if cell.load is not None:
            opened.plan = open_load(cell.load, recipe.warmup_requests)
    except LLMOptError as error:
        opened.error = describe(error)
    if isinstance(prepared, str):
        opened.error = prepared
    if opened.error is not None or isinstance(prepared, str):
        return opened
    opened.quantization = prepared.quantization
    document = cell_document(recipe, cell) | {"weights": prepared.content_hash}
    document["load_record"] = None if opened.load is None else to_json(opened.load)
    if cell.load is not None and cell.load.is_searched:
        document["repeats"] = recipe.repeats  # which decide on the rate
    # A checkout is dirty as soon as results are written into it: that makes no journal stale.
    opened.fingerprint = fingerprint(document, replace(environment, git_dirty=None))
    partial = load_partial(out_dir, cell.cell_id, opened.fingerprint)
    if partial is not None:
        most = recipe.repeats
        if recipe.until_ci is not None:
            most = max(most, recipe.max_repeats)
        opened.runs = [run for run in partial.runs if run.repeat < most]
        opened.quality = partial.quality
        opened.backend = partial.backend
        opened.search_journal = partial.search
    return opened


def close_cell(
    opened: OpenCell, recipe: Recipe, environment: Environment, ceilings: Ceilings | None
) -> CellResult:
    """The result of a cell on which nothing more is measured."""
    runs = tuple(sorted(opened.runs, key=lambda run: run.repeat))
    load = None if opened.error is not None else opened.load  # None: nothing to judge
    assert load is None or opened.model is not None, "a cell without an error has a model"
    result = CellResult(
        cell_id=opened.cell.cell_id,
        recipe_name=recipe.name,
        recipe=to_document(recipe),
        target=opened.cell.target.name,
        base_target=recipe.base.as_target().name,
        model=opened.model,
        backend=opened.backend or _backend_facts(opened),
        load=opened.load,
        environment=environment,
        ceilings=ceilings,
        cost=opened.cost,
        runs=runs,
        quality=opened.quality,
        validity=_validity(opened, load, runs),
        summary=None,
        error=opened.error,
        skipped=opened.skipped,
        created_at=datetime.now(UTC).isoformat(timespec="seconds"),
        quantization=opened.quantization,
        price_per_hour=recipe.price_per_hour,
        stopping=opened.stopping,
        search=opened.search,
    )
    return result if load is None else replace(result, summary=summarize_cell(result))


def _backend_facts(opened: OpenCell) -> BackendFacts:
    """Of our own runtime, or of one that was not opened."""
    if is_foreign(opened.cell):
        return unserved_facts(opened.cell)
    return backend_facts(opened.plan, opened.cell.target.engine)


def _validity(
    opened: OpenCell, load: LoadSpec | None, runs: Sequence[RunRecord]
) -> tuple[ValidityCheck, ...]:
    return () if load is None else (*check_cell(load, runs), *serving_checks(opened.backend))
