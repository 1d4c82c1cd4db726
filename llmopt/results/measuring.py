"""How the runs of a cell came about: why they ended when they did, and how a rate was found.

Part of the schema (`llmopt.results.schema`). The law: what decided is in here beside the decision,
so that it can be argued with.
"""

from dataclasses import dataclass

from llmopt.results.events import RunRecord


@dataclass(frozen=True, slots=True)
class StoppingRecord:
    """Why there are no more runs, where their scatter decided it (`until_ci`).

    A width is half of the 95 % interval of the mean of runs / that mean. Runs go on for all cells
    of a sweep until the widest of all is within the bound.
    """

    bound: float  # the width that was asked for
    max_repeats: int
    is_settled: bool  # every main number of this cell is within the bound
    widths: dict[str, float]  # by main number; "inf": too few runs to say
    reason: str  # in words, of the sweep


@dataclass(frozen=True, slots=True)
class ProbeRecord:
    """One rate that was tried. Rates in requests per second."""

    rate: float
    met: bool  # every bound of the SLO, over the requests of all runs
    has_backlog: bool  # requests came faster than they were served
    goodput: float  # requests per second that were served within every bound
    num_runs: int
    num_requests: int  # of all these runs
    terms_ms: tuple[float, ...]  # what each term of the SLO bounds; "inf": of requests that failed
    rounds_held: tuple[bool, ...]  # the verdict of each whole round of runs alone

    @property
    def holds(self) -> bool:
        """Whether the rate can be sustained within the bounds."""
        return self.met and not self.has_backlog


@dataclass(frozen=True, slots=True)
class SearchRecord:
    """The search for the highest rate that keeps an SLO, probes in the order of first trial.

    `rate` None: none that was tried holds; `failing_rate` None: no higher one was seen to fail, so
    that `rate` is just the last that was tried.
    """

    rate: float | None
    failing_rate: float | None
    start_rate: float  # of requests one by one, from which the search began
    probes: tuple[ProbeRecord, ...]


@dataclass(frozen=True, slots=True)
class ProbeRuns:
    """The runs at one rate."""

    rate: float
    runs: tuple[RunRecord, ...]


@dataclass(frozen=True, slots=True)
class SearchJournal:
    """A search under way: its decisions follow from its runs."""

    start_rate: float
    probes: tuple[ProbeRuns, ...] = ()
