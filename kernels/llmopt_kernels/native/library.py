"""The compiled kernels, loaded once per process, or the reason why there are none.

Knows nothing of what they compute. The law: torch is loaded first, so that both use one OpenMP
runtime and one pool of threads; and a missing compiler costs speed and one line, never an error.
"""

import ctypes
import os
import sys
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch  # noqa: F401 - its OpenMP runtime must be in the process before ours is looked for

from llmopt_kernels.native.build import BuildError, build_library, find_compiler

INSTRUCTION_SETS = ("scalar", "avx2", "avx512")  # by their numbers in linear.h


@dataclass(frozen=True, slots=True)
class NativeLibrary:
    """The loaded library and the number of the instruction set to use."""

    handle: ctypes.CDLL
    instruction_set: int

    @property
    def instruction_set_name(self) -> str:
        """Such as "avx512"."""
        return INSTRUCTION_SETS[self.instruction_set]


def native_enabled() -> bool:
    """Whether compiled kernels are wanted: LLMOPT_NATIVE=0 turns them off."""
    return os.environ.get("LLMOPT_NATIVE", "1") != "0"


def native_library(directory: Path) -> NativeLibrary | None:
    """The library, compiled into `directory` at first use; None where it is turned off or cannot
    be built, which is said once on stderr.
    """
    return _load(directory) if native_enabled() else None


@cache
def _load(directory: Path) -> NativeLibrary | None:
    try:
        handle = _open(directory)
    except (BuildError, OSError) as error:
        print(
            f"llmopt: no compiled CPU kernels, torch's are used: {error}. Install g++ or set CXX "
            "to a C++ compiler, or set LLMOPT_NATIVE=0 to hide this line.",
            file=sys.stderr,
        )
        return None
    best = handle.llmopt_best_instruction_set
    best.restype = ctypes.c_int32
    return NativeLibrary(handle, best())


def _open(directory: Path) -> ctypes.CDLL:
    """The library, built a second time where what is there cannot be loaded; if that cannot be
    loaded either, nothing is built any more.
    """
    compiler = find_compiler()
    library = build_library(directory, compiler, on_compile=_say_compiling)
    tried = library.with_suffix(".rebuilt")
    try:
        return ctypes.CDLL(str(library))
    except OSError:
        if tried.exists():
            raise
        library.unlink(missing_ok=True)
        tried.touch()
    handle = ctypes.CDLL(str(build_library(directory, compiler, on_compile=_say_compiling)))
    tried.unlink(missing_ok=True)
    return handle


def _say_compiling() -> None:
    print("llmopt: compiling the CPU kernels, once: this can take a minute", file=sys.stderr)
