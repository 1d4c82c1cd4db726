"""What whoever inspects a checkpoint before it gets its name is shown.

Data and a protocol; knows nothing of what an inspector looks for.
Law: a checkpoint that an inspector refuses is never published.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from llmopt.quantize.options import Job, QuantizeSummary


@dataclass(frozen=True, slots=True)
class WrittenCheckpoint:
    """A checkpoint that is whole and was read back, but has no name yet.

    directory: where its files are now; `summary.out`: where they will be
    source: directory of the model it was made from
    source_bytes: of its weight files; source_sha256: see `identity.source_hash`
    shapes: [O, K] of the quantized layers, by the module's name
    made_with: names and versions of a quantizer of others, if one made it
    """

    directory: Path
    source: Path
    source_bytes: int
    source_sha256: str
    job: Job
    summary: QuantizeSummary
    shapes: Mapping[str, tuple[int, int]]
    made_with: str | None = None


class Inspector(Protocol):
    """Looks at a checkpoint and may add files to its directory."""

    def __call__(self, written: WrittenCheckpoint, /) -> None:
        """Raise an `LLMOptError` if it must not be published."""
