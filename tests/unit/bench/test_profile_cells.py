from types import SimpleNamespace
from typing import Any

import pytest

from llmopt.bench.profile_cells import profile_cells
from llmopt.bench.speed import Served
from llmopt.bench.workload_spec import open_load
from llmopt.errors import EngineError
from llmopt.models.loader import load_model
from llmopt.recipe.loads import Load
from llmopt.results.schema import Ceilings

CEILINGS = Ceilings({"float32": 1e11}, 1e10, 1e10, "2026-01-01T00:00:00+00:00", 1, "cpu")
PLAN = open_load(Load(2, 2, 20, 5), warmup_requests=0)


class Heard:
    def __init__(self) -> None:
        self.lines: list[str] = []

    def stage_started(self, stage: str) -> None:
        self.lines.append(stage)

    def stage_advanced(self, done: int, total: int, detail: str) -> None:
        self.lines.append(f"{done} of {total}: {detail}")

    def stage_finished(self) -> None:
        self.lines.append("finished")


def opened(name: str, backend: str = "llmopt", **changes: Any) -> Any:
    cell = SimpleNamespace(cell_id=name, load=PLAN.load, backend=SimpleNamespace(name=backend))
    fields = {"plan": PLAN, "error": None, "runs": ["a run"]}
    return SimpleNamespace(cell=cell, **(fields | changes))


def test_cells_that_ran_here_are_profiled_and_no_others(tiny_llama):
    model = load_model(tiny_llama, dtype="float32")
    cells = [
        opened("ours"),
        opened("failed", error="died"),
        opened("quality", plan=None),
        opened("never", runs=[]),
        opened("theirs", "vllm"),
        opened("large"),
    ]

    def served(cell: Any) -> Served:
        name = cell.cell.cell_id
        if name == "large":
            raise EngineError("no memory is left for the cache", "Free some.")
        assert name == "ours"
        return Served(model, ())

    heard = Heard()
    profiles = profile_cells(cells, served, CEILINGS, heard)
    assert list(profiles) == ["ours"]
    assert [profile.kind for profile in profiles["ours"]] == ["decode", "prefill"]
    assert heard.lines[:2] == ["profile", "0 of 6: ours"]
    assert heard.lines[-2].startswith("5 of 6: large: ")
    assert "no memory is left" in heard.lines[-2]
    assert heard.lines[-1] == "finished"


def test_what_is_no_users_error_is_not_hidden():
    def served(cell: Any) -> Served:
        raise ZeroDivisionError

    heard = Heard()
    with pytest.raises(ZeroDivisionError):
        profile_cells([opened("a")], served, CEILINGS, heard)
    assert heard.lines[-1] == "finished"
