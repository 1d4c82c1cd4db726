"""A cell of which only that is known which another tool's file says.

Knows nothing about files. The law: what is not known is None, 0 or says "not known".
"""

from llmopt.results.schema import (
    BackendFacts,
    CellResult,
    Environment,
    LoadSpec,
    ModelFacts,
    RunRecord,
    Summary,
    ValidityCheck,
)

UNKNOWN = "not known"


def imported_cell(
    tool: str,
    target: str,
    *,
    load: LoadSpec,
    summary: Summary,
    runs: tuple[RunRecord, ...] = (),
    validity: tuple[ValidityCheck, ...] = (),
    model: ModelFacts | None = None,
    device: str | None = None,
    created_at: str = "",
) -> CellResult:
    """A cell of a tool's run; `device` None: the file does not say where it ran."""
    return CellResult(
        cell_id="imported",
        recipe_name="imported",
        recipe={},
        target=target,
        base_target="",
        model=model,
        backend=BackendFacts(tool, "(imported)", {"imported_from": tool}),
        load=load,
        environment=Environment(
            device=device or "a machine that is not known",
            cores=0,
            memory_bytes=0,
            os=UNKNOWN,
            python=UNKNOWN,
            torch=UNKNOWN,
            transformers=UNKNOWN,
            llmopt=UNKNOWN,
            git_sha=None,
            git_dirty=None,
            num_threads=0,
        ),
        ceilings=None,
        cost=None,
        runs=runs,
        quality=None,
        validity=validity,
        summary=summary,
        error=None,
        created_at=created_at,
    )
