"""A cell on a runtime of others: whether it can be measured, and what its result says of it.

Knows recipes' cells and the table of backends; starts nothing. The law: what cannot be is said
before anything is started, and nothing that was seen of our own runtime is said of another.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace

from llmopt.backends.catalogue import OWN, find_backend
from llmopt.backends.formats import RANDOM, CheckpointFacts, read_facts, why_not
from llmopt.backends.open_backend import check_available, require_attachable
from llmopt.backends.profiles.registry import find_profile
from llmopt.bench.failures import describe
from llmopt.bench.prepare import PreparedTarget
from llmopt.errors import LLMOptError, UsageError
from llmopt.recipe.check import Problem
from llmopt.recipe.schema import Cell, Recipe, named_backends
from llmopt.results.schema import BackendFacts, CostModel, ModelFacts, ValidityCheck

_SERVING = (("servers:", "num_servers"), ("prefix cache:", "cache"))


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why a cell is not measured. skipped: it cannot be; else something is missing here."""

    reason: str
    skipped: bool


def refuse(cell: Cell, prepared: PreparedTarget, device: str) -> Refusal | None:
    """Why a cell cannot be served by its backend, if it cannot; starts nothing."""
    if not is_foreign(cell):
        return None
    try:
        facts = checkpoint_facts(prepared)
        where = device.partition(":")[0] if cell.backend.url is None else None
        reason = why_not(find_backend(cell.backend.name), facts, where)
        if reason is not None:
            return Refusal(f"skipped: {reason}", True)
        check_available(cell.backend, facts)
    except LLMOptError as error:
        return Refusal(describe(error), False)
    return None


def is_foreign(cell: Cell) -> bool:
    """Whether another runtime than our own serves a cell."""
    return cell.load is not None and cell.backend.name != OWN


def checkpoint_facts(prepared: PreparedTarget) -> CheckpointFacts:
    """The facts of a target's checkpoint. Raises CheckpointError."""
    return RANDOM if prepared.target.dummy_config is not None else read_facts(prepared.path)


def examined(
    cell: Cell, prepared: PreparedTarget, facts: ModelFacts, cost: CostModel
) -> tuple[ModelFacts, CostModel | None]:
    """What is true of the weights where another runtime serves them.

    Its kernels are not ours, and what a step reads is known only where it computes with the
    weights as they are stored, and the cost is not that of a cache of our engine alone: without
    that there is no MFU and no MBU. Nor is there for a server that was named by a URL, whose
    machine may be another than the one with the ceilings.
    """
    if not is_foreign(cell):
        return facts, cost
    kind = find_backend(cell.backend.name)
    notes = [facts.note] if facts.note else []
    if kind.converts:
        notes.append(f"{kind.name} converts the weights; the quality is that of the checkpoint.")
    changed = replace(facts, kernels=(), note=" ".join(notes) or None)
    is_here = cell.backend.url is None
    as_stored = kind.serves_as_stored and checkpoint_facts(prepared).format == "full"
    engine = cell.target.engine
    is_same = as_stored and not (engine is not None and engine.changes_cache)
    return changed, cost if is_here and is_same else None


def runs_together(recipe: Recipe, cell: Cell, repeat: int) -> range:
    """The runs to make when it is the turn of this one: it alone, or all that are left where one
    server serves all runs of the cell.
    """
    last = recipe.repeats if cell.backend.reuse_server else repeat + 1
    return range(repeat, max(repeat + 1, last))


def backend_problems(recipe: Recipe) -> Iterator[Problem]:
    """Yield what is wrong with the backends that a recipe names (a rule for `load_recipe`)."""
    for path, spec in named_backends(recipe):
        try:
            kind = find_backend(spec.name)
            if spec.url is not None:
                require_attachable(kind)
        except UsageError as error:
            yield Problem(path, error.message, error.remedy)
            continue
        is_started = kind.how != "server" or find_profile(kind.name).launch is not None
        if spec.url is None and not is_started:
            yield Problem(
                path,
                f"{kind.name} cannot be started by llmopt",
                f"Start it as `llmopt backend install {kind.name}` says, and give its url.",
            )
        if kind.how != "server" and spec.server_args:
            yield Problem(path, f"{kind.name} is no server with arguments", "Remove server_args.")


def unserved_facts(cell: Cell) -> BackendFacts:
    """What a result says of a runtime that was never started."""
    return BackendFacts(cell.backend.name, "unknown", {})


def serving_checks(facts: BackendFacts | None) -> tuple[ValidityCheck, ...]:
    """What a reader must know of how another runtime was started; none of it makes a row invalid,
    since what the runs show of it is checked there.
    """
    if facts is None:
        return ()
    parts = [f"{name} {facts.settings[key]}" for name, key in _SERVING if key in facts.settings]
    return (ValidityCheck("serving", True, "; ".join(parts)),) if parts else ()
