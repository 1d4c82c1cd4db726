"""The stages of `bench.gpu_check`.

The law: a stage stops when its time is up, after the case at hand; the result file and the table
are written again after every stage, so that a run that is cut off leaves what it had.
"""

import time
from collections.abc import Callable, Mapping, MutableMapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from bench.ceilings import Sizes, measure_ceilings
from bench.engine_check import LARGE, TINY, check_engine
from bench.kernel_run import KernelOptions, make_result, measure_rows
from bench.table import kernel_table
from bench.targets import target_lines
from bench.timing import Effort
from llmopt.results import files
from llmopt.results.codec import to_json
from llmopt.results.kernels import OURS, EngineRow, KernelResult, KernelRow

_EFFORT = Effort(budget_s=0.15, min_rounds=7)
_TINY_EFFORT = Effort(budget_s=0.005, min_rounds=2, max_rounds=3, flush_bytes=1 << 16)
_TINY_SIZES = Sizes(1 << 20, 64)


class Stages:
    """Runs the stages one after another, and keeps what they found."""

    def __init__(
        self,
        *,
        out: Path,
        device: torch.device,
        is_tiny: bool,
        config: Path,
        schemes: Sequence[str | None],
    ) -> None:
        self._out = out
        self._device = device
        self._is_tiny = is_tiny
        self._config = config
        self._schemes = schemes
        self._checked: list[KernelRow] = []
        effort, sizes = (_TINY_EFFORT, _TINY_SIZES) if is_tiny else (Effort(), None)
        self._result = make_result(
            device, measure_ceilings(device, effort, sizes), "tiny" if is_tiny else "quick", ()
        )

    @property
    def by_name(self) -> Mapping[str, Callable[[float], None]]:
        """The stages in their order; each takes its seconds."""
        return {"correctness": self._check, "kernels": self._time, "engine": self._serve}

    def finish(self) -> int:
        """Print where things stand, and return the exit code."""
        wrong = _wrong([*self._checked, *self._result.rows])
        failed = [row for row in self._result.engine if row.problem is not None]
        for line in (*self._table(), *_problem_lines(wrong, failed)):
            print(line)
        nothing = not (self._checked and self._result.rows and self._result.engine)
        return int(bool(wrong or failed or nothing))

    def _check(self, time_s: float) -> None:
        """Every kernel's outputs at real shapes; nothing is timed."""
        options = KernelOptions((), self._device, self._shapes("real"), None, time_s)
        self._checked, unfinished = measure_rows(options, _say)
        own = [row for row in self._checked if row.contender == OURS]
        wrong = _wrong(own)
        _say_stage(f"correctness: {len(own) - len(wrong)} of {len(own)} outputs are right")
        self._result = self._with(unfinished=self._named("correctness", unfinished))
        document = {
            "rows": [to_json(row) for row in self._checked],
            "unfinished": list(unfinished),
        }
        files.write(self._out / "correctness.json", document)
        self._write()

    def _time(self, time_s: float) -> None:
        """Times beside those of others."""
        effort = _TINY_EFFORT if self._is_tiny else _EFFORT
        options = KernelOptions((), self._device, self._result.shapes, effort, time_s)
        rows, unfinished = measure_rows(options, _say)
        self._result = self._with(rows=tuple(rows), unfinished=self._named("kernels", unfinished))
        self._write()

    def _serve(self, time_s: float) -> None:
        """The engine, scheme by scheme."""
        end = time.monotonic() + time_s
        load = TINY if self._is_tiny else LARGE
        drawn: MutableMapping[tuple[object, ...], Any] = {}
        unfinished = []
        for position, scheme in enumerate(self._schemes):
            now = time.monotonic()
            due = now + (end - now) / (len(self._schemes) - position)

            def is_late(due: float = due) -> bool:
                return time.monotonic() > due

            found: list[EngineRow] = []
            for row in check_engine(self._config, scheme, self._device, load, drawn, is_late):
                found.append(row)
                self._result = self._with(engine=(*self._result.engine, row))
                self._write()
            if len(found) < len(load.batches) + len(load.prompts):
                unfinished.append(scheme or "bf16")
        self._result = self._with(unfinished=self._named("engine", unfinished))
        self._write()

    def _shapes(self, wanted: str) -> str:
        return "tiny" if self._is_tiny else wanted

    def _named(self, stage: str, names: Sequence[str]) -> tuple[str, ...]:
        return (*self._result.unfinished, *(f"{stage} {name}" for name in names))

    def _with(self, **changes: Any) -> KernelResult:
        return replace(self._result, **changes)

    def _table(self) -> list[str]:
        return [*kernel_table(self._result), "", "targets", *target_lines(self._result)]

    def _write(self) -> None:
        files.write(self._out / "kernels.json", to_json(self._result))
        text = "\n".join(self._table()) + "\n"
        (self._out / "kernels.txt").write_text(text, encoding="utf-8")


def _wrong(rows: Sequence[KernelRow]) -> list[KernelRow]:
    """Of ours; what others do wrong is in the table."""
    return [row for row in rows if row.contender == OURS and row.problem is not None]


def _problem_lines(wrong: Sequence[KernelRow], failed: Sequence[EngineRow]) -> list[str]:
    lines = [f"{row.kernel} {row.shape} batch {row.num_tokens}: {row.problem}" for row in wrong]
    lines += [f"engine {row.scheme}: {row.problem}" for row in failed]
    return ["", "problems", *(f"  {line}" for line in lines)] if lines else []


def _say(row: KernelRow) -> None:
    if row.problem is not None:
        print(f"{row.kernel} {row.shape} {row.contender}: {row.problem}", flush=True)


def _say_stage(line: str) -> None:
    print(line, flush=True)
