"""What the tests of models share: a checkpoint quantized by any scheme."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from llmopt.quantize.calibration import CalibrationData
from llmopt.quantize.journal import journal_path
from llmopt.quantize.options import Job, RunOptions
from llmopt.quantize.pipeline import quantize_jobs
from llmopt.quantize.scheme import parse_scheme
from llmopt.quantize.storage import default_format


@pytest.fixture(scope="session")
def quantize_tiny() -> Callable[[Path, Path, str], Path]:
    """Write a quantized copy of a checkpoint, by the name of the scheme."""
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(0, 128, (4, 64), generator=generator)
    calibration = CalibrationData(tokens, "r", "0" * 64, 0)

    def quantize(source: Path, out: Path, name: str) -> Path:
        scheme = parse_scheme(name)
        job = Job(scheme, default_format(scheme))
        run = RunOptions(calibration=calibration if scheme.needs_calibration else None)
        quantize_jobs(source, {out: job}, journal_path(out), run)
        return out

    return quantize
