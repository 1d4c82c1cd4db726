"""Files of others, broken files, and old ones: each is shown, or named in one line."""

import csv
import io
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from foreign_files import LLAMA_BENCH, aiperf_line, guidellm_file, vllm_file

from llmopt.errors import ResultError
from llmopt.report.render import render
from llmopt.report.sources import Sources, read_sources
from llmopt.results.codec import to_json
from llmopt.results.schema import CellResult
from llmopt.results.store import write_once

MakeResult = Callable[..., CellResult]


def written(path: Path, content: Any) -> Path:
    path.write_text(json.dumps(content))
    return path


def rendered(sources: Sources, format: Any) -> str:
    out = io.StringIO()
    render(sources.results, sources.errors, format, out)
    return out.getvalue()


def row_of(path: Path) -> dict[str, str]:
    sources = read_sources([path])
    assert sources.errors == []
    (row,) = csv.DictReader(io.StringIO(rendered(sources, "csv")))
    return row


def test_vllm_bench(tmp_path: Path) -> None:
    row = row_of(written(tmp_path / "vllm.json", vllm_file()))
    assert (row["target"], row["imported_from"], row["concurrency"]) == ("tiny", "vllm bench", "2")
    assert float(row["output_throughput_tokens_per_s"]) == pytest.approx(5 * 300 / 45.01)
    assert float(row["ttft_p50_ms"]) == pytest.approx(100)
    assert float(row["tpot_p50_ms"]) == pytest.approx(50)
    assert float(row["itl_p50_ms"]) == pytest.approx(50)
    unknown = ("kld_mean", "file_bytes", "mfu", "speedup", "peak_memory_bytes", "bits_per_weight")
    assert {row[name] for name in unknown} == {""}
    assert row["machine"] == "a machine that is not known"


def test_guidellm_counts_from_the_wanted_time(tmp_path: Path) -> None:
    row = row_of(written(tmp_path / "benchmarks.json", guidellm_file()))
    assert row["imported_from"] == "GuideLLM"
    assert float(row["ttft_p50_ms"]) == pytest.approx(300)  # 200 of them in the client's queue
    assert float(row["output_throughput_tokens_per_s"]) == pytest.approx(80 / 11)


def test_aiperf_lines(tmp_path: Path) -> None:
    path = tmp_path / "profile_export.jsonl"
    path.write_text("\n".join(json.dumps(aiperf_line(i)) for i in range(20)))
    row = row_of(path)
    assert row["imported_from"] == "AIPerf"
    assert float(row["ttft_p50_ms"]) == pytest.approx(100)


def test_llama_bench_has_a_rate_and_a_size_only(tmp_path: Path) -> None:
    prompts = LLAMA_BENCH | {"n_prompt": 512, "n_gen": 0}
    row = row_of(written(tmp_path / "llama.json", [prompts, LLAMA_BENCH]))
    assert row["target"] == "llama 1B Q4_0"
    assert row["machine"] == "Some CPU"
    assert float(row["output_throughput_tokens_per_s"]) == 119.0
    assert row["bits_per_weight"] == "6.4"
    assert row["ttft_p50_ms"] == row["request_throughput_per_s"] == ""
    (error,) = read_sources([written(tmp_path / "prompts.json", [prompts])]).errors
    assert "no test that only generates" in error.message


def test_imports_are_marked_in_the_table(tmp_path: Path, make_result: MakeResult) -> None:
    write_once(tmp_path, make_result())
    written(tmp_path / "vllm.json", vllm_file())
    text = rendered(read_sources([tmp_path]), "markdown")
    assert "**imported: vllm bench (imported) on a machine that is not known**" in text
    (line,) = (line for line in text.splitlines() if line.startswith("| tiny |"))
    assert line == "| tiny | 2 | – | – | – | – | – | 100 | 50.0 | 33.3 | – | – | – |"
    assert "tiny was imported from vllm bench (300 requests)" in text
    assert "not known" not in text.partition("Measured with")[2]


BROKEN = {
    "cut.json": (b'{"schema_version": 1, "cell', "is not a whole JSON file"),
    "empty.json": (b"", "is not a whole JSON file"),
    "binary.json": (b"\xff\xfe\x00\x01", "is not a whole JSON file"),
    "foreign.json": (b'{"a": 1}', "is not an llmopt result file"),
    "list.json": (b"[1, 2]", "is not an llmopt result file"),
    "deep.json": (b"[" * 100_000, "is not a whole JSON file"),
    "vllm.json": (
        b'{"output_throughput": 1, "completed": 1, "ttfts": [0.1], "output_lens": [1]}',
        "is not whole",
    ),
    "llama.json": (b'[{"avg_ts": "fast", "n_gen": 1}]', "is not whole"),
    "kernels.json": (b'{"kind": "kernels", "schema_version": 0}', "has the schema 0"),
}


def test_each_broken_file_is_one_line_and_the_rest_is_reported(
    tmp_path: Path, make_result: MakeResult
) -> None:
    write_once(tmp_path, make_result())
    for name, (content, _) in BROKEN.items():
        (tmp_path / name).write_bytes(content)
    old = to_json(make_result()) | {"schema_version": 0}
    written(tmp_path / "old.json", old)
    wrong = to_json(make_result()) | {"target": 3}
    written(tmp_path / "wrong.json", wrong)
    sources = read_sources([tmp_path])
    assert [result.target for result in sources.results] == ["gptq-w4g64"]
    text = rendered(sources, "markdown")
    lines = [line for line in text.splitlines() if line.startswith("* not read: ")]
    assert len(lines) == len(BROKEN) + 2
    expected = {name: message for name, (_, message) in BROKEN.items()}
    expected |= {"old.json": "has the result schema 0", "wrong.json": "must be str"}
    for name, message in expected.items():
        (line,) = (line for line in lines if f"/{name}" in line)
        assert message in line


def test_kernel_results_are_for_pictures(tmp_path: Path, make_result: MakeResult) -> None:
    result = make_result()
    content = {
        "schema_version": 1,
        "kind": "kernels",
        "environment": to_json(result.environment),
        "gpu_driver": None,
        "cuda": None,
        "triton": None,
        "peers": {},
        "ceilings": to_json(result.ceilings),
        "shapes": "tiny",
        "rows": [],
    }
    sources = read_sources([written(tmp_path / "kernels.json", content)])
    assert (len(sources.kernels), sources.errors) == (1, [])
    with pytest.raises(ResultError, match="benchmarks of kernels"):
        render([], [], "terminal", io.StringIO(), kernels=sources.kernels)


def test_what_claims_to_be_of_llmopt_is_not_taken_for_another_tools(tmp_path: Path) -> None:
    path = written(tmp_path / "a.json", vllm_file() | {"schema_version": 7, "cell_id": "x"})
    sources = read_sources([path])
    assert sources.results == []
    (error,) = sources.errors
    assert "result schema 7" in error.message


def test_reading_results_imports_nothing_heavy(tmp_path: Path, make_result: MakeResult) -> None:
    write_once(tmp_path, make_result())
    code = (
        "import sys\n"
        "sys.argv = ['llmopt', 'report', sys.argv[1]]\n"
        "from llmopt.cli import main\n"
        "try: main()\n"
        "except SystemExit as end: assert end.code == 0, end.code\n"
        "heavy = ('torch', 'matplotlib', 'numpy', 'transformers', 'jinja2')\n"
        "print('HEAVY', [name for name in heavy if name in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines()[-1] == "HEAVY []"
