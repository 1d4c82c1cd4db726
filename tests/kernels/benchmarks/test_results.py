"""What follows from the rows of a benchmark: shares, crossovers, targets; and its files."""

import json
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.table import crossover_chart, kernel_table
from bench.targets import target_lines
from llmopt.errors import ResultError
from llmopt.results.kernels import (
    KERNEL_SCHEMA_VERSION,
    KernelRow,
    bandwidth,
    bandwidth_share,
    ceiling_share,
    crossovers,
    flops,
    flops_share,
    read_kernel_result,
    write_kernel_result,
)

BASELINE = "torch bf16"


def test_shares_are_of_the_ceilings_of_the_run(make_row, ceilings):
    row = make_row()
    assert bandwidth(row) == pytest.approx(2e9)
    assert bandwidth_share(row, ceilings) == pytest.approx(0.5), "of reading, the faster one"
    assert flops(row) == pytest.approx(3e12)
    assert flops_share(row, ceilings) == pytest.approx(0.3)
    assert ceiling_share(row, ceilings) == pytest.approx(0.5)
    int8 = replace(row, flops_dtype="int8", num_flops=18e9)
    assert flops_share(int8, ceilings) == ceiling_share(int8, ceilings) == pytest.approx(0.9)
    assert flops_share(replace(row, flops_dtype="float8_e4m3fn"), ceilings) is None
    uncounted = replace(row, num_flops=0.0)
    assert flops(uncounted) is flops_share(uncounted, ceilings) is None
    untimed = replace(row, median_s=None)
    assert bandwidth(untimed) is ceiling_share(untimed, ceilings) is None


def test_steps_of_the_engine_have_shares_too(make_engine_row, ceilings):
    row = make_engine_row()
    assert bandwidth_share(row, ceilings) == pytest.approx(0.75)
    assert flops_share(row, ceilings) == pytest.approx(0.1)
    assert ceiling_share(replace(row, step_s=None), ceilings) is None


def pairs(make_row, times):
    for tokens, (ours, theirs) in times.items():
        yield make_row(num_tokens=tokens, median_s=ours)
        yield make_row(num_tokens=tokens, median_s=theirs, contender=BASELINE)


@pytest.mark.parametrize(
    ("times", "up_to"),
    [
        ({1: (1.0, 3.0), 16: (2.0, 3.0), 64: (4.0, 3.0), 256: (1.0, 3.0)}, 16),
        ({1: (1.0, 3.0), 16: (3.0, 3.0)}, 16),
        ({1: (3.1, 3.0), 16: (1.0, 3.0)}, 0),
    ],
)
def test_a_crossover_is_the_last_batch_before_the_first_slower_one(make_row, times, up_to):
    rows = [*reversed(list(pairs(make_row, times)))]
    rows.append(make_row(num_tokens=512, median_s=1.0))  # nothing to compare with
    rows.append(make_row(num_tokens=1024, median_s=None, contender=BASELINE))
    (found,) = crossovers(rows, BASELINE)
    assert found.up_to == up_to
    assert found.speedups == tuple((n, theirs / ours) for n, (ours, theirs) in times.items())


@given(st.dictionaries(st.integers(1, 512), st.floats(0.1, 10), min_size=1))
def test_up_to_its_crossover_ours_never_was_slower(speedups):
    rows = [
        KernelRow("k", "s", n, who, "", None, t, t, t, 2, True, 1, 1.0, "bfloat16")
        for n, speedup in speedups.items()
        for who, t in (("llmopt", 1.0), (BASELINE, speedup))
    ]
    (found,) = crossovers(rows, BASELINE)
    assert all(speedups[n] >= 1 for n in speedups if n <= found.up_to)
    later = sorted(n for n in speedups if n > found.up_to)
    assert not later or speedups[later[0]] < 1


def test_the_chart_says_where_both_are_equal(make_row):
    rows = [*pairs(make_row, {1: (1.0, 4.0), 8: (1.0, 0.5)})]
    _, title, first, second = crossover_chart(crossovers(rows, BASELINE))
    assert title == "wna16 w4g128 64x64: not slower than bf16 up to batch 1"
    assert first == f"  {1:6} #####|##############  4.00x"
    assert second == f"  {8:6} ##   |{' ' * 14}  0.50x"


def test_a_table_has_shares_comparisons_and_problems(plain_result, make_row, make_engine_row):
    rows = (
        make_row(variant="triton w4"),
        make_row(contender=BASELINE, median_s=2e-3, num_bytes=8_000_000, is_graph=False),
        make_row(contender="gemlite", median_s=None, problem="an element is off"),
    )
    engine = (make_engine_row(), make_engine_row(stage="prefill", context=50))
    result = replace(plain_result, rows=rows, engine=engine, unfinished=("kernels fp8",))
    assert not any("with launches" in line for line in kernel_table(result)), "there is no graph"
    result = replace(result, ceilings=replace(result.ceilings, device="cuda"))
    lines = list(kernel_table(result))

    def line(*words):
        (found,) = [line for line in lines if all(word in line for word in words)]
        return found

    assert "1 ms" in line("llmopt (triton w4)")
    assert "50% memory" in line("llmopt (triton w4)")
    assert "with launches" not in line("llmopt (triton w4)")
    assert "llmopt 2.00x  with launches" in line("64x64", BASELINE, "1")
    assert "100% memory" in line("64x64", BASELINE)
    assert line("gemlite").endswith("an element is off")
    assert line("decode").split()[-2:] == ["1000", "20.0%"]
    assert line("prefill").split()[-2:] == ["50000", "20.0%"]
    assert lines[-1] == "the time was up: kernels fp8"


def test_targets_are_kept_missed_or_not_measured(plain_result, make_row, make_engine_row):
    rows = (
        *pairs(make_row, {1: (1.0, 3.0), 16: (1.0, 2.9), 64: (1.0, 0.9)}),
        make_row(contender="tinygemm", median_s=1.5),
    )
    engine = (
        make_engine_row(num_bytes=3_400_000.0),
        make_engine_row(stage="prefill", context=50, num_flops=5e9),
        make_engine_row(batch=64, host_s=5e-5),
    )
    found = list(target_lines(replace(plain_result, rows=rows, engine=engine)))

    def verdict(words):
        (line,) = [line for line in found if words in line]
        return line.split()[0]

    assert verdict("decode, batch 1, bf16") == "kept"
    assert verdict("decode, batch 1, w4g128") == "not"
    assert verdict("MFU") == "missed"
    assert verdict("batch 1 to 16, least: 2.9") == "kept"
    assert verdict("any batch, least: 0.9") == "missed"
    assert verdict("tinygemm, batch 1 to 64, least: 1.5 ") == "kept"
    assert verdict("gemlite") == "not"
    assert verdict("host, share of a decode step at batch 64: 0.05") == "kept"
    assert verdict("attention") == "not"


def test_files_are_numbered_by_device_and_never_overwritten(plain_result, make_row, tmp_path):
    environment = replace(plain_result.environment, device="NVIDIA H100 80GB", git_sha="1234567890")
    result = replace(plain_result, environment=environment, rows=(make_row(),))
    first = write_kernel_result(tmp_path, result)
    assert first == tmp_path / "nvidia-h100-80gb" / "0001-1234567.json"
    later = replace(result, environment=replace(environment, git_sha=None))
    assert write_kernel_result(tmp_path, later).name == "0002-nogit.json"
    assert read_kernel_result(first) == result


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"kind": "cell"}, "not a benchmark of kernels"),
        ({"schema_version": KERNEL_SCHEMA_VERSION + 1}, "has the schema 2"),
        ({"rows": [{"kernel": 3}]}, "rows"),
    ],
)
def test_other_files_are_refused(plain_result, tmp_path, changes, message):
    path = write_kernel_result(tmp_path, plain_result)
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    with pytest.raises(ResultError, match=message):
        read_kernel_result(path)
