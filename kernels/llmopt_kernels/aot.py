"""Kernels compiled ahead of time for a GPU that need not be there: `python -m llmopt_kernels.aot`.

Triton lowers to PTX and the ptxas of its wheel makes machine code, so registers, spills and shared
memory are known without a device. What stays unknown is time.
Each `triton.py` has `aot_signatures() -> list[AotCase]`: its kernels, specialized as at run time.
Knows no kernel but by these lists. Triton's interpreter replaces `@triton.jit` when it is imported,
so this runs in a process of its own, without TRITON_INTERPRET.
"""

import importlib
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

MAX_SHARED_BYTES = 227 * 1024  # of a block on sm_90: CUDA C++ Programming Guide, "Compute 9.0"


@dataclass(frozen=True, slots=True)
class AotCase:
    """One specialization of a kernel.

    signature: the type of every argument that is not a constexpr, as Triton writes it: "*bf16",
        "*fp8e4nv", "*i8", "i32", "fp32". Pointers are taken to be aligned to 16 bytes, as those of
        torch's allocator are.
    aligned: integer arguments that are multiples of 16, as strides are; Triton specializes on it.
    needs_wgmma: the kernel must use Hopper's asynchronous tensor core instructions.
    max_spilled_bytes: what a thread may spill; 0 where speed matters.
    """

    name: str
    kernel: Any  # the @triton.jit function
    signature: Mapping[str, str]
    constexprs: Mapping[str, Any] = field(default_factory=dict)
    aligned: Sequence[str] = ()
    num_warps: int = 4
    num_stages: int = 3
    needs_wgmma: bool = False
    max_spilled_bytes: int = 0


@dataclass(frozen=True, slots=True)
class AotReport:
    """What the compiler made of a case; registers and spilled bytes are those of one thread."""

    name: str
    registers: int
    spilled_bytes: int
    shared_bytes: int
    has_wgmma: bool

    def problems(self, case: AotCase) -> list[str]:
        """What the case demands and the code does not keep."""
        found = []
        if self.spilled_bytes > case.max_spilled_bytes:
            found.append(f"spills {self.spilled_bytes} bytes")
        if self.shared_bytes > MAX_SHARED_BYTES:
            found.append(f"needs {self.shared_bytes} bytes of shared memory")
        if case.needs_wgmma and not self.has_wgmma:
            found.append("has no wgmma")
        return found


def compile_case(case: AotCase, arch: int = 90) -> AotReport:
    """Compile for sm_`arch`.

    Raises:
        Exception: Triton's errors, if the kernel does not compile.
    """
    options = {"num_warps": case.num_warps, "num_stages": case.num_stages}
    compiled = triton.compile(_source(case), target=GPUTarget("cuda", arch, 32), options=options)
    ptx = compiled.asm["ptx"]
    registers, spilled_bytes = _resources(ptx, arch)
    return AotReport(
        name=case.name,
        registers=registers,
        spilled_bytes=spilled_bytes,
        shared_bytes=compiled.metadata.shared,
        has_wgmma="wgmma.mma_async" in ptx,
    )


def all_cases(folders: Iterable[str] = ()) -> list[AotCase]:
    """The cases of the kernels in `folders`, names beside this file; of all if there are none."""
    here = Path(__file__).parent
    names = sorted(folders) or sorted(path.parent.name for path in here.glob("*/triton.py"))
    modules = [importlib.import_module(f"llmopt_kernels.{name}.triton") for name in names]
    return [case for module in modules for case in module.aot_signatures()]


def main(folders: Sequence[str]) -> int:
    """Compile everything, print a table, and return 1 if a case fails."""
    failed = False
    print(f"{'case':48} registers  spilled  shared KiB  wgmma")
    for case in all_cases(folders):
        try:
            report = compile_case(case)
        except Exception as error:  # whatever the compiler raises belongs in the table
            print(f"{case.name:48} does not compile: {error.__cause__ or error}")
            failed = True
            continue
        problems = report.problems(case)
        failed = failed or bool(problems)
        print(
            f"{case.name:48} {report.registers:9} {report.spilled_bytes:8}"
            f" {report.shared_bytes / 1024:11.1f}  {'yes' if report.has_wgmma else 'no':5}"
            f" {'; '.join(problems)}".rstrip(),
            flush=True,
        )
    return int(failed)


def _source(case: AotCase) -> Any:
    names: list[str] = case.kernel.arg_names
    assert {*case.signature, *case.constexprs} == set(names), (
        f"{case.name}: every argument once, differs in "
        f"{sorted({*case.signature, *case.constexprs} ^ set(names))}"
    )
    signature = {name: case.signature.get(name, "constexpr") for name in names}
    divisible = [["tt.divisibility", 16]]
    attrs = {
        (index,): divisible
        for index, name in enumerate(names)
        if signature[name].startswith("*") or name in case.aligned
    }
    return ASTSource(fn=case.kernel, signature=signature, constexprs=case.constexprs, attrs=attrs)


def _resources(ptx: str, arch: int) -> tuple[int, int]:
    """Registers and spilled bytes of a thread, as `ptxas --verbose` tells them."""
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "kernel.ptx"
        source.write_text(ptx, encoding="utf-8")
        suffix = "a" if arch >= 90 else ""
        told = subprocess.run(
            [
                triton.knobs.nvidia.ptxas.path,
                "--verbose",
                f"--gpu-name=sm_{arch}{suffix}",
                f"--output-file={folder}/kernel.cubin",
                str(source),
            ],
            check=True,
            capture_output=True,
            text=True,
        ).stderr
    registers = re.search(r"Used (\d+) registers", told)
    spilled = re.search(r"(\d+) bytes spill stores", told)
    assert registers is not None, f"ptxas said something else: {told}"
    assert spilled is not None, f"ptxas said something else: {told}"
    return int(registers[1]), int(spilled[1])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
