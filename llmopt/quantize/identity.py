"""What a run is made from and of, as hashes: the same hash, the same bytes.

Knows nothing of how anything is computed.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from llmopt import __version__
from llmopt.formats.checkpoint import CheckpointReader
from llmopt.quantize.calibration import CalibrationData
from llmopt.quantize.options import Job


def source_name(path: Path) -> str:
    """Return the name of a model by its directory; for a snapshot in the hub's cache, whose own
    name is a commit, that of the repository.
    """
    repository = path.parent.parent.name
    if path.parent.name == "snapshots" and repository.startswith("models--"):
        return repository.rpartition("--")[2]
    return path.absolute().name


def source_hash(reader: CheckpointReader) -> str:
    """Return a SHA-256 over the contents of the weight files, in order. Reads them whole."""
    return hash_files(reader.files)


def hash_files(files: Sequence[Path]) -> str:
    """Return one SHA-256 over the contents of files, in the order given."""
    digest = hashlib.sha256()
    for file in files:
        with file.open("rb") as stream:
            digest.update(hashlib.file_digest(stream, "sha256").digest())
    return digest.hexdigest()


def calibration_hash(calibration: CalibrationData) -> str:
    """Return a SHA-256 of the calibration tokens and their division into windows."""
    tokens = calibration.tokens
    digest = hashlib.sha256(f"{tuple(tokens.shape)} int64\n".encode())
    digest.update(tokens.contiguous().numpy().data)
    return digest.hexdigest()


@dataclass(frozen=True, slots=True)
class RunInputs:
    """What all jobs of a run are made from. source_sha256: see `source_hash`"""

    reader: CheckpointReader
    source_sha256: str
    calibration: CalibrationData | None
    device: str

    def fingerprint(self, job: Job) -> str:
        """Return a SHA-256 of all that decides the bytes of a job's checkpoint."""
        data = self.calibration if job.scheme.needs_calibration else None
        content = {
            "llmopt": __version__,
            "source": self.source_sha256,
            "config": self.reader.config,
            "job": asdict(job),
            "calibration": None if data is None else calibration_hash(data),
            "device": self.device,
        }
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def run_fingerprint(fingerprints: Sequence[str]) -> str:
    """Return the fingerprint of a run from those of its jobs."""
    return hashlib.sha256("\n".join(fingerprints).encode()).hexdigest()
