"""How much the same code differs from itself here, learned from A/A sessions, as a file.

An A/A session is a session of interleaved runs of one revision against itself. Knows nothing about
rules. The laws: noise is per cell and metric, as standard deviations of logarithms; what was not
learned is not known, never 0.

    pair      of the difference of two runs that followed each other
    session   of one session's mean from another's, which all runs of a session share
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, stdev

from llmopt.errors import ResultError
from llmopt.report.gate.matching import Matched
from llmopt.report.gate.metrics import METRICS, run_values
from llmopt.results import files
from llmopt.results.codec import from_json, to_json

ASSUMED_SESSION = 0.03  # where nothing was learned: between sessions on one quiet machine
MIN_SESSIONS = 3
_KIND = "gate-noise"


@dataclass(frozen=True, slots=True)
class Noise:
    """The noise of a metric of a cell. `session` None: too few sessions to say."""

    cell_id: str
    metric: str
    pair: float
    session: float | None
    num_pairs: int
    num_sessions: int


@dataclass(frozen=True, slots=True)
class LearnedNoise:
    """The content of a noise file. `machine`: what it was learned on, in words."""

    kind: str
    machine: str
    noise: tuple[Noise, ...]

    def find(self, cell_id: str, metric: str) -> Noise | None:
        """What is known of a metric of a cell; None: nothing."""
        return next((n for n in self.noise if (n.cell_id, n.metric) == (cell_id, metric)), None)


def learn(sessions: Sequence[Matched], metrics: Iterable[str]) -> LearnedNoise:
    """The noise of these metrics in A/A sessions, each of interleaved runs, at least one."""
    names = [name for name in dict.fromkeys(metrics) if METRICS[name].kind == "speed"]
    gathered: dict[tuple[str, str], list[list[tuple[float, float]]]] = {}
    devices = set()
    for session in sessions:
        for pair in session.pairs:
            devices.add(pair.new.environment.device)
            for name in names:
                old, new = (run_values(METRICS[name], side) for side in (pair.old, pair.new))
                if old is not None and new is not None and len(old) == len(new):
                    logs = [(math.log(a), math.log(b)) for a, b in zip(old, new, strict=True)]
                    gathered.setdefault((pair.cell_id, name), []).append(logs)
    noise = tuple(_noise(cell_id, name, found) for (cell_id, name), found in gathered.items())
    return LearnedNoise(_KIND, ", ".join(sorted(devices)), noise)


def write_noise(path: Path, learned: LearnedNoise) -> None:
    """Write the file. Raises OutputError."""
    document: Mapping[str, object] = to_json(learned)
    files.write(path, document)


def read_noise(path: Path) -> LearnedNoise:
    """Read a file that `write_noise` wrote. Raises ResultError."""
    document = files.read(path)
    if document.get("kind") != _KIND:
        raise ResultError(
            f"{path} is no noise file", "Make one with llmopt gate --run RECIPE --aa N."
        )
    return from_json(LearnedNoise, document, str(path))


def _noise(cell_id: str, metric: str, sessions: list[list[tuple[float, float]]]) -> Noise:
    """The pairs' difference is 0 on average: both are the same."""
    squares = [(new - old) ** 2 for session in sessions for old, new in session]
    means = [fmean(value for pair in session for value in pair) for session in sessions]
    return Noise(
        cell_id=cell_id,
        metric=metric,
        pair=math.sqrt(fmean(squares)),
        session=stdev(means) if len(means) >= MIN_SESSIONS else None,
        num_pairs=len(squares),
        num_sessions=len(sessions),
    )
