"""Launch configurations that were found by measuring, one JSON file for each GPU in `tuned/`.

    {kernel: {shape class: {parameter: integer}}}

A kernel defines, beside its `triton.py`, `shape_class(...) -> str` and `candidates(shape_class)`;
a tuner measures the candidates and writes the file. At run time nothing is measured.
Knows no kernel. The law: what a launch uses depends on the GPU's name, the kernel and the shape
class only, and without a file it is the kernel's default.
"""

import json
import re
from collections.abc import Mapping
from functools import cache
from pathlib import Path

import torch

Config = Mapping[str, int]
Table = Mapping[str, Mapping[str, Config]]

_FOLDER = Path(__file__).parent / "tuned"


def launch_config(kernel: str, shape_class: str, default: Config) -> Config:
    """The configuration for a launch on the current GPU; `default` where none was tuned."""
    if not _has_gpu():  # under Triton's interpreter
        return default
    return _table_of(torch.cuda.current_device()).get(kernel, {}).get(shape_class, default)


def tuned_file(gpu_name: str) -> Path:
    """Where the configurations of a GPU are kept; the name is as torch gives it."""
    return _FOLDER / (re.sub(r"[^a-z0-9]+", "-", gpu_name.lower()).strip("-") + ".json")


def read_tuned(path: Path) -> Table:
    """The configurations in a file; none if there is no such file."""
    if not path.exists():
        return {}
    table: Table = json.loads(path.read_text(encoding="utf-8"))
    for configs in table.values():
        for config in configs.values():
            assert all(type(value) is int for value in config.values()), f"integers only: {path}"
    return table


def write_tuned(path: Path, table: Table) -> None:
    """Write configurations, sorted, so that a new measurement shows as a small difference."""
    path.write_text(json.dumps(table, indent=1, sort_keys=True) + "\n", encoding="utf-8")


@cache
def _has_gpu() -> bool:
    return torch.cuda.is_available()


@cache
def _table_of(device: int) -> Table:
    return read_tuned(tuned_file(torch.cuda.get_device_name(device)))
