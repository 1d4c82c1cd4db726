"""Where a sweep runs: the machine's facts and its measured ceilings, as results keep them.

Knows nothing about models. The law: numbers are compared with what this machine was seen to do,
not with a data sheet.
"""

from dataclasses import asdict, dataclass

from llmopt.hardware.ceilings import measure_ceilings
from llmopt.hardware.device import environment_facts
from llmopt.results.schema import Ceilings, Environment


@dataclass(frozen=True, slots=True)
class Site:
    """The machine, and what it can do at best; None if that was not measured."""

    environment: Environment
    ceilings: Ceilings | None


def survey(device: str, *, measure: bool) -> Site:
    """Look at the machine, and measure it if asked to, which takes some seconds."""
    return Site(
        environment=Environment(**asdict(environment_facts(device))),
        ceilings=Ceilings(**asdict(measure_ceilings(device))) if measure else None,
    )
