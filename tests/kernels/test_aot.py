"""Kernels compile for sm_90 without a GPU, and keep what their cases demand."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

TRITON = importlib.util.find_spec("triton")
HAS_PTXAS = TRITON is not None and any(
    Path(place, "backends/nvidia/bin/ptxas").exists()
    for place in TRITON.submodule_search_locations or ()
)
pytestmark = pytest.mark.skipif(not HAS_PTXAS, reason="Triton with its ptxas is not installed")


def run(code: str, tmp_path: Path) -> subprocess.CompletedProcess[str]:
    """Run in a process where Triton compiles, in place of interpreting."""
    (tmp_path / "script.py").write_text(code)  # the source of a kernel must be in a file
    environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    environment["TRITON_CACHE_DIR"] = str(tmp_path / "cache")
    return subprocess.run(
        [sys.executable, str(tmp_path / "script.py")],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )


def test_kernels_compile_for_hopper_without_spills(tmp_path):
    code = """
from llmopt_kernels.aot import all_cases, compile_case
names = {"rms_norm c4096 residual int8", "gated_activation gelu_tanh"}
cases = [case for case in all_cases(["rms_norm", "gated_activation"]) if case.name in names]
assert len(cases) == len(names)
for case in cases:
    report = compile_case(case)
    assert report.problems(case) == [], report
    assert 8 < report.registers <= 64, report
    assert not report.has_wgmma, report
"""
    done = run(code, tmp_path)
    assert done.returncode == 0, done.stderr


KERNELS = """
import sys
import triton
import triton.language as tl
from dataclasses import replace
from llmopt_kernels import aot
from llmopt_kernels.aot import AotCase, compile_case

@triton.jit
def product(a, b, out, N: tl.constexpr):
    row, column = tl.arange(0, N)[:, None], tl.arange(0, N)[None, :]
    index = row * N + column
    tl.store(out + index, tl.dot(tl.load(a + index), tl.load(b + index)))

case = AotCase("product", product, {"a": "*bf16", "b": "*bf16", "out": "*fp32"}, {"N": 128})
"""


def test_a_report_tells_wgmma_spills_and_shared_memory(tmp_path):
    code = """
report = compile_case(replace(case, needs_wgmma=True, num_warps=8))
assert report.has_wgmma and report.problems(case) == [] and report.shared_bytes > 30000, report
crowded = replace(case, num_warps=1)
report = compile_case(crowded)
assert report.spilled_bytes > 0, report
assert report.problems(crowded) == [f"spills {report.spilled_bytes} bytes", ], report
assert report.problems(replace(crowded, max_spilled_bytes=report.spilled_bytes)) == []
assert replace(report, spilled_bytes=0, has_wgmma=False, shared_bytes=2**18).problems(
    replace(case, needs_wgmma=True)
) == ["needs 262144 bytes of shared memory", "has no wgmma"]
"""
    done = run(KERNELS + code, tmp_path)
    assert done.returncode == 0, done.stderr


def test_the_command_fails_where_a_kernel_does_not_compile(tmp_path):
    code = """
broken = replace(case, name="broken", signature={**case.signature, "b": "*i8"})
aot.all_cases = lambda folders: [case, broken]
sys.exit(aot.main([]))
"""
    done = run(KERNELS + code, tmp_path)
    assert done.returncode == 1, done.stderr
    lines = done.stdout.splitlines()
    assert lines[1].startswith("product ")
    assert "broken" in lines[2]
    assert "does not compile" in lines[2]


def test_a_case_names_every_argument(tmp_path):
    done = run(KERNELS + "compile_case(replace(case, constexprs={}))", tmp_path)
    assert "every argument once, differs in ['N']" in done.stderr
