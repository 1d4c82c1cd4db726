"""The compiled CPU kernels for tests: every instruction set that this processor has."""

from dataclasses import replace

import pytest

from llmopt.hardware.cache import kernels_directory
from llmopt_kernels.native.library import INSTRUCTION_SETS, NativeLibrary, native_library

EVERY_SET = range(len(INSTRUCTION_SETS))  # parameters of a test: places in `libraries`


def libraries() -> list[NativeLibrary]:
    """One library for each instruction set, the plainest first; skips without a compiler."""
    best = native_library(kernels_directory())
    if best is None:
        pytest.skip("the C++ kernels are off or cannot be compiled here")
    return [replace(best, instruction_set=number) for number in range(best.instruction_set + 1)]


def library_of(number: int) -> NativeLibrary:
    """The library for an instruction set; skips where the processor lacks it."""
    found = libraries()
    if number >= len(found):
        pytest.skip("this processor lacks the instructions")
    return found[number]
