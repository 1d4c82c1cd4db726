"""The suite on a CPU at tiny shapes, and what becomes of outputs that are wrong."""

import math
from dataclasses import replace

import pytest
import torch

from bench.case import OURS, Case, Contender
from bench.closeness import checked_rows, closeness_problem, norm_problem, rounding_problem
from bench.kernel_run import KernelOptions, check_kernels, measure_rows, run_kernels
from bench.shapes import REAL, SHAPES, TINY
from bench.suite import SUITE, measure_case, measure_kernel
from bench.table import kernel_table
from llmopt.errors import UsageError
from llmopt_kernels.fp8 import reference as fp8
from llmopt_kernels.w8a8 import reference as w8a8

CPU = torch.device("cpu")
ON_GPU = {"moe", "rejection"}


@pytest.mark.parametrize("kernel", SUITE)
def test_outputs_are_right_and_everything_has_a_time(kernel, brief):
    rows = [row for case in measure_kernel(kernel, CPU, TINY, brief) for row in case]
    assert bool(rows) == (kernel not in ON_GPU)
    for row in rows:
        assert row.problem is None, row
        assert row.kernel == kernel
        assert 0 < row.low_s <= row.median_s <= row.high_s
        assert row.num_rounds == 2
        assert not row.is_graph
        assert row.num_bytes > 0
    cases = {(row.shape, row.num_tokens) for row in rows}
    ours = [row for row in rows if row.contender == OURS]
    assert len(ours) == len(cases)


def test_products_are_counted(brief):
    rows = [row for case in measure_kernel("wna16", CPU, TINY, None) for row in case]
    (dense,) = [
        row
        for row in rows
        if (row.shape, row.num_tokens, row.contender) == ("w4g128 512x128", 3, "torch bf16")
    ]
    assert dense.num_flops == 2 * 3 * 512 * 128
    assert dense.num_bytes == 2 * (3 * 128 + 3 * 512 + 512 * 128)
    (ours,) = [
        row
        for row in rows
        if (row.shape, row.num_tokens, row.contender) == ("w4g128 512x128", 3, OURS)
    ]
    assert 512 * 64 < ours.num_bytes - 2 * 3 * (128 + 512) < 512 * 64 * 1.2
    assert ours.variant
    assert ours.median_s is None, "nothing was timed"


def test_attention_counts_the_pairs_that_see_each_other():
    rows = [row for case in measure_kernel("paged_attention", CPU, TINY, None) for row in case]
    flops = {row.shape.partition(" h")[0]: row.num_flops for row in rows}
    assert flops["decode bf16 context 40"] == 4 * 4 * 32 * 2 * 40
    assert flops["prompt of 20 bf16 context 20"] == 4 * 4 * 32 * 210


def test_of_many_rows_some_are_checked_from_the_first_to_the_last():
    assert checked_rows(5, CPU).tolist() == [0, 1, 2, 3, 4]
    rows = checked_rows(8192, CPU).tolist()
    assert (rows[0], rows[-1], len(set(rows))) == (0, 8191, 256)


@pytest.mark.parametrize("native", ["0", "1"])
@pytest.mark.parametrize(
    "kernel", ["wna16", "w8a8", "fp8", "rms_norm", "gated_activation", "paged_attention"]
)
def test_a_row_that_is_wrong_is_found(kernel, native, monkeypatch):
    """Each output is spoiled in its last row, and each case says so of each contender."""
    monkeypatch.setenv("LLMOPT_NATIVE", native)
    for case in SUITE[kernel](CPU, TINY):
        spoiled = tuple(
            replace(contender, call=lambda call=contender.call: spoil(call()))
            for contender in case.contenders
        )
        rows = measure_case(replace(case, contenders=spoiled), CPU, None)
        assert all(row.problem is not None for row in rows), (kernel, case.shape)


def spoil(out):
    parts = [part.clone() for part in (out if isinstance(out, tuple) else (out,))]
    wide = parts[0][-1].float()
    parts[0][-1] = torch.where(wide == 0, 1.0, wide * 2 + 3).to(parts[0].dtype)
    return tuple(parts) if isinstance(out, tuple) else parts[0]


def make_case(*contenders: Contender) -> Case:
    def check(out):
        return None if out == 1 else f"{out}, not 1"

    return Case("k", "s", 1, contenders, check)


def test_a_wrong_output_is_a_row_without_a_time(brief):
    def broken() -> None:
        raise RuntimeError("no kernel image")

    case = make_case(
        Contender(OURS, lambda: 1, 8),
        Contender("wrong", lambda: 2, 8),
        Contender("broken", broken, 8),
        Contender("other", lambda: 3, 8, check=lambda out: None if out == 3 else "no"),
    )
    rows = {row.contender: row for row in measure_case(case, CPU, brief)}
    assert [row.problem for row in rows.values()] == [
        None,
        "2, not 1",
        "RuntimeError: no kernel image",
        None,
    ]
    assert [row.median_s is not None for row in rows.values()] == [True, False, False, True]
    assert rows["wrong"].num_rounds == 0


def test_an_output_that_is_wrong_by_more_than_the_table_says_is_told():
    exact = torch.randn(4, 8, generator=torch.Generator().manual_seed(0)).double()
    assert closeness_problem(exact.bfloat16(), exact) is None
    assert "times as far off" in closeness_problem(exact.bfloat16() * 1.05, exact)
    assert closeness_problem(torch.full((4, 8), math.nan), exact) == "not finite"
    assert closeness_problem(exact[:2], exact) == "shape (2, 8), not (4, 8)"
    assert norm_problem(exact * 1.01, exact) is None
    assert "0.05 of the output" in norm_problem(exact * 1.05, exact)


@pytest.mark.parametrize("quantize", [w8a8.quantize_tokens, fp8.quantize_tokens])
def test_rounded_tokens_may_be_a_step_off_and_no_more(quantize):
    x = torch.randn(6, 32, generator=torch.Generator().manual_seed(1)).bfloat16()
    codes, scales = quantize(x)
    assert rounding_problem((codes, scales), (codes, scales)) is None
    bits = codes.view(torch.int8).clone()
    bits[2, 3] += 1 if 0 < bits[2, 3] < 100 else -1
    moved = bits.view(codes.dtype)
    assert rounding_problem((moved, scales), (codes, scales)) is None
    bits[2, 3] += 2 if 0 < bits[2, 3] < 100 else -2
    assert "steps off" in rounding_problem((bits.view(codes.dtype), scales), (codes, scales))
    assert "a scale" in rounding_problem((codes, scales * 1.02), (codes, scales))
    assert rounding_problem((codes, scales * 1.01), (codes, scales), max_steps=2) is None
    assert "codes are" in rounding_problem((codes.float(), scales), (codes, scales))


def test_neighbours_of_e4m3_are_one_step_apart():
    values = torch.tensor([[-0.001953125, 0.0, 0.001953125, 0.00390625]])
    low, zero, high, two = values.to(torch.float8_e4m3fn).split(1, dim=1)
    one = torch.ones(1, 1)
    assert rounding_problem((low, one), (zero, one)) is None
    assert rounding_problem((zero, one), (high, one)) is None
    assert rounding_problem((zero, one), (two, one)) == "a code is 2 steps off"
    assert rounding_problem((low, one), (high, one)) == "a code is 2 steps off"


def test_what_the_time_did_not_reach_is_named(brief):
    options = KernelOptions(("store_kv", "sampling"), CPU, "tiny", brief, time_s=0.0)
    seen = []
    rows, unfinished = measure_rows(options, seen.append)
    assert unfinished == ("store_kv", "sampling")
    assert seen == rows
    assert {row.kernel for row in rows} == {"store_kv", "sampling"}
    assert all(rows.count(row) == 1 for row in rows)
    assert {row.contender for row in rows if row.kernel == "store_kv"} == {OURS, "torch"}
    everything, unfinished = measure_rows(replace(options, time_s=None), seen.append)
    assert len(everything) > len(rows)
    assert unfinished == ()


def test_a_run_is_a_result_with_ceilings_and_a_table(brief):
    from bench.ceilings import Sizes

    options = KernelOptions(("wna16", "sampling"), CPU, "tiny", brief)
    result = run_kernels(options, lambda row: None, Sizes(1 << 16, 32))
    assert result.ceilings.read_bytes_per_s > 0
    assert result.environment.torch == torch.__version__
    text = "\n".join(kernel_table(result))
    for part in ("wna16", "greedy v300", "of ceiling", "ceilings, measured now", "torch bf16"):
        assert part in text
    assert "wna16 w4g128 512x128: " in text, "a crossover chart"
    assert "engine" not in text


def test_a_kernel_that_does_not_exist_is_refused():
    with pytest.raises(UsageError, match="no kernel 'gemm'"):
        check_kernels(("wna16", "gemm"))
    check_kernels(tuple(SUITE))


def test_real_shapes_are_those_of_an_8b_model():
    assert REAL.matrices == ((6144, 4096), (4096, 4096), (28672, 4096), (4096, 14336))
    assert set(SHAPES) == {"real", "quick", "cpu", "tiny"}
    assert set(SHAPES["quick"].tokens) <= set(REAL.tokens)
