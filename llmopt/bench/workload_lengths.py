"""How long the prompts and outputs of a load are.

Knows nothing about text or time. The laws: the seed decides the lengths; a prompt and an output of
one table come from one row of it.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from math import log, sqrt
from pathlib import Path
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

from llmopt.bench.workload_trace import read_trace
from llmopt.errors import UsageError
from llmopt.recipe.loads import Lengths
from llmopt.results.schema import LengthSpec

Draws = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Sizes:
    """Tokens of one prompt and of its output."""

    prompt_tokens: int
    output_tokens: int


@dataclass(frozen=True, slots=True)
class SizeSource:
    """Two distributions, with the rows of the tables that they draw from.

    A row is (prompt tokens, output tokens); a table of single numbers has them twice.
    """

    prompt: Lengths | int
    output: Lengths | int
    prompt_rows: Draws | None = None  # [R, 2]
    output_rows: Draws | None = None

    @classmethod
    def open(cls, prompt: Lengths | int, output: Lengths | int) -> "SizeSource":
        """Read the tables. Raises UsageError."""
        return cls(prompt, output, _rows(prompt), _rows(output))

    def draw(self, number: int, seed: Sequence[int]) -> list[Sizes]:
        """So many sizes; those of one seed begin alike, however many there are."""
        rng = np.random.default_rng(seed)
        uniform = rng.random((number, 3))
        rows = uniform[:, 0]  # one draw for both, where both have a table
        prompts = _draw(self.prompt, self.prompt_rows, 0, rows, uniform[:, 1])
        outputs = _draw(self.output, self.output_rows, 1, rows, uniform[:, 2])
        return [Sizes(int(p), int(o)) for p, o in zip(prompts, outputs, strict=True)]

    def specs(self) -> tuple[LengthSpec, LengthSpec]:
        """What a result file keeps of the two."""
        return _spec(self.prompt, self.prompt_rows, 0), _spec(self.output, self.output_rows, 1)


def spec_of(values: Sequence[int], source: str) -> LengthSpec:
    """The lengths that a trace or a file has, for a result file."""
    return LengthSpec("empirical", float(np.mean(values)), min(values), max(values), source=source)


def _draw(
    lengths: Lengths | int,
    rows: Draws | None,
    column: int,
    row_uniform: NDArray[np.float64],
    own_uniform: NDArray[np.float64],
) -> Draws:
    """The lengths that belong to uniform numbers in [0, 1), by the inverse of the distribution."""
    if isinstance(lengths, int):
        return np.full(len(own_uniform), lengths)
    if rows is not None:
        drawn = rows[(row_uniform * len(rows)).astype(np.int64), column]
    elif lengths.kind == "uniform":
        drawn = lengths.low + np.floor(own_uniform * (lengths.high - lengths.low + 1))
    else:
        mu, sigma = _log_parameters(lengths)
        drawn = np.rint(np.exp(mu + sigma * _normal_quantile(own_uniform)))
    clipped: Draws = np.clip(drawn, lengths.low, lengths.high).astype(np.int64)
    return clipped


def _log_parameters(lengths: Lengths) -> tuple[float, float]:
    """Mean and standard deviation of the logarithm of a lognormal length."""
    assert lengths.mean is not None, "lognormal lengths have a mean"
    assert lengths.std is not None, "lognormal lengths have a standard deviation"
    variance = log(1 + (lengths.std / lengths.mean) ** 2)
    return log(lengths.mean) - variance / 2, sqrt(variance)


def _normal_quantile(uniform: NDArray[np.float64]) -> NDArray[np.float64]:
    smallest = np.finfo(np.float64).tiny
    inverse = NormalDist().inv_cdf
    return np.array([inverse(max(value, smallest)) for value in uniform.tolist()])


def _spec(lengths: Lengths | int, rows: Draws | None, column: int) -> LengthSpec:
    if isinstance(lengths, int):
        return LengthSpec("fixed", float(lengths), lengths, lengths)
    low, high = lengths.low, lengths.high
    if rows is not None:
        values = np.clip(rows[:, column], low, high)
        return LengthSpec(
            "empirical",
            float(values.mean()),
            int(values.min()),
            int(values.max()),
            source=Path(lengths.table or "").name,
        )
    if lengths.kind == "uniform":
        return LengthSpec("uniform", (low + high) / 2, low, high)
    assert lengths.mean is not None, "lognormal lengths have a mean"
    return LengthSpec("lognormal", lengths.mean, low, high, sigma=_log_parameters(lengths)[1])


def _rows(lengths: Lengths | int) -> Draws | None:
    if isinstance(lengths, int) or lengths.table is None:
        return None
    path = Path(lengths.table)
    if path.suffix != ".json":
        trace = read_trace(path)
        return np.array([(row.prompt_tokens, row.output_tokens) for row in trace])
    try:
        table = np.array(json.loads(path.read_text(encoding="utf-8")))
    except OSError as error:
        raise UsageError(
            f"the table {path} cannot be read ({error.strerror})", "Check the path."
        ) from error
    except ValueError as error:
        raise UsageError(f"the table {path} is not JSON", "Use a list of lengths.") from error
    if table.dtype.kind != "i" or not table.size or table.shape[1:] not in ((), (2,)):
        raise UsageError(
            f"the table {path} is no list of lengths",
            "Use whole numbers, or [prompt, output] pairs of them.",
        )
    return table if table.ndim == 2 else np.stack((table, table), axis=1)
