"""The kernels that are measured, and the measurement of one of their cases.

Knows nothing of files. The law: an output is held against its definition before it is timed, and a
contender whose output is wrong, or that raises, is a row that says so and has no time.
"""

from collections.abc import Iterator, Mapping
from functools import partial

import torch

from bench.attention_cases import attention_cases
from bench.case import Case, Cases, Contender
from bench.linear_cases import linear_cases
from bench.moe_cases import moe_cases
from bench.row_cases import gated_cases, norm_cases
from bench.sampling_cases import rejection_cases, sampling_cases
from bench.shapes import Shapes
from bench.store_cases import rotary_cases, store_cases
from bench.timing import Effort, Failure, Timing, first_line, time_calls
from llmopt.results.kernels import KernelRow

# The small ones first: what they leave of a limited time is for the matrix products.
SUITE: Mapping[str, Cases] = {
    "store_kv": store_cases,
    "rotary_store_kv": rotary_cases,
    "rms_norm": norm_cases,
    "gated_activation": gated_cases,
    "rejection": rejection_cases,
    "sampling": sampling_cases,
    "moe": moe_cases,
    "paged_attention": attention_cases,
    "nf4": partial(linear_cases, "nf4"),
    "w8a8": partial(linear_cases, "w8a8"),
    "fp8": partial(linear_cases, "fp8"),
    "wna16": partial(linear_cases, "wna16"),
}


@torch.inference_mode()
def measure_kernel(
    name: str, device: torch.device, shapes: Shapes, effort: Effort | None
) -> Iterator[list[KernelRow]]:
    """The rows of each case of a kernel. effort: None: outputs are checked, nothing is timed."""
    for case in SUITE[name](device, shapes):
        yield measure_case(case, device, effort)


@torch.inference_mode()
def measure_case(case: Case, device: torch.device, effort: Effort | None) -> list[KernelRow]:
    """A row for each contender."""
    problems = {contender.name: _problem(case, contender) for contender in case.contenders}
    right = {c.name: c.call for c in case.contenders if problems[c.name] is None}
    timings = time_calls(right, device, effort) if effort is not None else {}
    return [
        _row(case, contender, problems[contender.name], timings.get(contender.name))
        for contender in case.contenders
    ]


def _problem(case: Case, contender: Contender) -> str | None:
    try:
        out = contender.call()
        return (contender.check or case.check)(out)
    except Exception as error:  # a contender that cannot run is a row that says why
        return first_line(error)


def _row(
    case: Case, contender: Contender, problem: str | None, timing: Timing | Failure | None
) -> KernelRow:
    if isinstance(timing, Failure):
        problem, timing = timing.reason, None
    return KernelRow(
        kernel=case.kernel,
        shape=case.shape,
        num_tokens=case.num_tokens,
        contender=contender.name,
        variant=contender.kernel,
        problem=problem,
        median_s=None if timing is None else timing.median_s,
        low_s=None if timing is None else timing.low_s,
        high_s=None if timing is None else timing.high_s,
        num_rounds=0 if timing is None else timing.num_rounds,
        is_graph=timing is not None and timing.is_graph,
        num_bytes=contender.num_bytes,
        num_flops=case.num_flops,
        flops_dtype=case.flops_dtype,
    )
