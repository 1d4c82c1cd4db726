"""What the speed of a row is compared with.

Knows nothing about how a ratio is computed, or about machines and loads.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from llmopt.errors import UsageError
from llmopt.results.schema import CellResult


@dataclass(frozen=True, slots=True)
class Baseline:
    """A target and a backend; None: the base of the recipe, and the row's own backend.

    With `is_same_target` it is the row's own target, on that backend.
    """

    target: str | None = None
    backend: str | None = None
    is_same_target: bool = False

    def of(self, result: CellResult) -> tuple[str, str]:
        """The backend and the target that a result is compared with."""
        target = result.target if self.is_same_target else self.target or result.base_target
        return self.backend or result.backend.name, target


def read_baseline(text: str | None, results: Sequence[CellResult]) -> Baseline:
    """What "TARGET", "BACKEND:TARGET", "BACKEND" or nothing stands for; the first that is known.

    Raises UsageError if none of the results is that.
    """
    if text is None:
        return Baseline()
    targets = dict.fromkeys(result.target for result in results)
    backends = dict.fromkeys(result.backend.name for result in results)
    if text in targets:
        return Baseline(text)
    if text in backends:
        return Baseline(backend=text, is_same_target=True)
    backend, _, target = text.rpartition(":")
    if any((result.backend.name, result.target) == (backend, target) for result in results):
        return Baseline(target, backend)
    raise UsageError(
        f"There is no target or backend {text!r} to compare with",
        f"Known are {', '.join([*targets, *backends])}.",
    )
