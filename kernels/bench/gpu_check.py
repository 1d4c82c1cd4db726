"""`make gpu-check`: everything that needs a GPU, in one command and within nine minutes.

    correctness   every kernel at real shapes against its definition
    kernels       their times beside those of others, and the ceilings
    engine        a model of 8B parameters with random weights in bf16, w4g128 and fp8

Needs a checkout, torch, Triton, transformers and what comes with them, and psutil; no pytest, and
nothing is installed.
The law: each stage ends within its time, and what it found is in the files before the next begins.
Exit code 0: all outputs are right; 1: some are not, or a stage found nothing; 2: no GPU.
"""

import argparse
import importlib.util
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

_NEEDED = ("torch", "triton", "transformers", "safetensors", "numpy", "psutil")
_SCHEMES: tuple[str | None, ...] = (None, "w4g128", "fp8")
_SHARES = {"correctness": 0.3, "kernels": 0.3, "engine": 0.4}
_CONFIG = Path(__file__).parents[2] / "recipes" / "configs" / "llama-3.1-8b.json"


@dataclass(frozen=True, slots=True)
class Arguments:
    """What was asked. config: of the model, a config.json."""

    out: Path
    device: str
    tiny: bool
    time_s: float
    config: Path


def main(words: Sequence[str]) -> int:
    """Run the stages; returns the exit code."""
    arguments = _parse(words)
    missing = [name for name in _NEEDED if importlib.util.find_spec(name) is None]
    if missing and not (arguments.device == "cpu" and missing == ["triton"]):
        return _refuse(f"gpu-check needs {', '.join(missing)}: pip install {' '.join(missing)}")
    import torch

    if arguments.device == "cuda" and not torch.cuda.is_available():
        return _refuse("gpu-check needs a CUDA device that torch can use, and there is none here")
    from bench.gpu_stages import Stages

    arguments.out.mkdir(parents=True, exist_ok=True)
    stages = Stages(
        out=arguments.out,
        device=torch.device(arguments.device),
        is_tiny=arguments.tiny,
        config=arguments.config,
        schemes=_SCHEMES,
    )
    end = time.monotonic() + arguments.time_s
    shares = dict(_SHARES)
    for name, run in stages.by_name.items():
        left = end - time.monotonic()
        run(left * shares[name] / sum(shares.values()))
        del shares[name]
    return stages.finish()


def _parse(words: Sequence[str]) -> Arguments:
    parser = argparse.ArgumentParser(prog="python -m bench.gpu_check", description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="directory for the result files")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--tiny", action="store_true", help="tiny shapes, to try the stages")
    parser.add_argument("--time", type=float, default=520.0, help="seconds for all stages")
    parser.add_argument("--config", type=Path, default=_CONFIG, help="config.json of the model")
    found = parser.parse_args(words)
    return Arguments(found.out, found.device, found.tiny, found.time, found.config)


def _refuse(sentence: str) -> int:
    print(sentence, file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
