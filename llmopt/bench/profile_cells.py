"""The profiled pass over the cells of a sweep, when all their runs are done.

Knows nothing about how steps are timed. The laws: a profile that fails takes nothing from its cell;
cells that another runtime served, or that failed, have none.
"""

from collections.abc import Callable, Sequence

from llmopt.bench.cells import OpenCell
from llmopt.bench.failures import describe
from llmopt.bench.foreign import is_foreign
from llmopt.bench.observer import Observer, open_stage
from llmopt.bench.profile import profile_load
from llmopt.bench.speed import Served
from llmopt.errors import LLMOptError
from llmopt.results.attribution import StepProfile
from llmopt.results.schema import Ceilings

Profiles = dict[str, tuple[StepProfile, ...]]  # by cell id


def profile_cells(
    cells: Sequence[OpenCell],
    served: Callable[[OpenCell], Served],
    ceilings: Ceilings,
    observer: Observer,
) -> Profiles:
    """The profiles of all cells that can be profiled; the observer hears why one failed."""
    profiles: Profiles = {}
    with open_stage(observer, "profile"):
        for done, opened in enumerate(cells):
            cell_id = opened.cell.cell_id
            if opened.plan is None or opened.error is not None or not opened.runs:
                continue
            if is_foreign(opened.cell):
                continue
            observer.stage_advanced(done, len(cells), cell_id)
            try:
                serving = served(opened)
                assert serving.model is not None, "our own runtime serves a model"
                profiles[cell_id] = profile_load(
                    serving.model, opened.plan, serving.engine, ceilings, opened.runs
                )
            except LLMOptError as error:  # such as no memory for one more cache
                observer.stage_advanced(done, len(cells), f"{cell_id}: {describe(error)}")
    return profiles
