import json
from pathlib import Path

import pytest
import torch
import typer
from typer.testing import CliRunner

import llmopt
from llmopt.cli import bench_kernels as command
from llmopt.errors import UsageError
from llmopt.results.kernels import KernelResult

TINY = ["--shapes", "tiny", "--device", "cpu", "--quick"]


@pytest.fixture
def run(monkeypatch):
    pytest.importorskip("triton")
    command._find_bench()
    from bench import kernel_run
    from bench.ceilings import Sizes

    measure = kernel_run.measure_ceilings
    monkeypatch.setattr(
        kernel_run,
        "measure_ceilings",
        lambda device, effort, sizes: measure(device, effort, Sizes(1 << 16, 32)),
    )
    app = typer.Typer()
    app.command()(command.bench_kernels)

    def invoke(*words: str):
        return CliRunner().invoke(app, [*words], catch_exceptions=True)

    return invoke


def test_a_kernel_is_measured_printed_and_written(run, tmp_path):
    done = run("--kernel", "sampling", *TINY, "--out", str(tmp_path))
    assert done.exit_code == 0, done.output
    assert "greedy v300" in done.stdout
    assert "ceilings, measured now" in done.stdout
    assert len(list(tmp_path.glob("*/0001-*.json"))) == 1


def test_json_is_the_result(run):
    done = run("--kernel", "store_kv", *TINY, "--check", "--json")
    document = json.loads(done.stdout)
    assert set(document) == set(KernelResult.__dataclass_fields__)
    assert {row["kernel"] for row in document["rows"]} == {"store_kv"}
    assert all(row["median_s"] is None for row in document["rows"])


def test_a_wrong_output_of_ours_is_exit_code_1(run, monkeypatch):
    from bench import store_cases

    monkeypatch.setattr(store_cases, "store_keys_values", lambda *_: None)
    done = run("--kernel", "store_kv", *TINY, "--check")
    assert done.exit_code == 1
    assert "outputs of ours are wrong" in done.stderr
    assert "the cache does not hold what was stored" in done.stdout


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--kernel", "gemm"], "no kernel 'gemm'"),
        (["--shapes", "huge"], "no shapes 'huge'"),
        (["--device", "tpu"], "not a device"),
        (["--device", "cpu", "--tune"], "there is no GPU to launch on"),
    ],
)
def test_what_cannot_be_done_is_refused(run, words, message):
    done = run(*words)
    assert isinstance(done.exception, UsageError)
    assert message in str(done.exception)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_there_is_refused(run):
    assert "0 CUDA devices are usable" in str(run("--device", "cuda").exception)


def test_without_a_checkout_it_says_what_to_do(run, tmp_path, monkeypatch):
    installed = tmp_path / "site-packages" / "llmopt" / "__init__.py"
    monkeypatch.setattr(llmopt, "__file__", str(installed))
    done = run("--kernel", "sampling", *TINY)
    assert isinstance(done.exception, UsageError)
    assert "Clone the repository" in str(done.exception)


def test_the_benchmarks_lie_beside_the_package():
    assert (Path(llmopt.__file__).parents[1] / "kernels" / "bench" / "suite.py").is_file()
