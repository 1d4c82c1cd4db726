"""Running an engine, with a worker that only pretends: every way in which it can end."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from llmopt.errors import (
    BackendError,
    CheckpointError,
    OutputError,
    QuantizationError,
    UsageError,
)
from llmopt.formats.checkpoint import CheckpointReader
from llmopt.formats.quantized import QuantSpec
from llmopt.quantize.calibration import CalibrationData
from llmopt.quantize.engines.engine import Capability, Engine
from llmopt.quantize.engines.request import EngineRequest
from llmopt.quantize.engines.run import quantize_with_engine
from llmopt.quantize.engines.worker import WORKERS

STUB = Engine(
    name="stub",
    environment="gptqmodel",
    worker="stub_worker.py",
    packages=("torch",),
    capabilities=(
        Capability(
            "gptq", "gptq", bits=(4,), group_sizes=(32,), symmetric=(True,), needs_calibration=True
        ),
        Capability("gguf", "gguf", gguf_types=("q8_0",)),
    ),
)
COPIES = """
import json, os, shutil, tempfile
from pathlib import Path

def quantize(job):
    print("tokens", job["calibration"][1][:3], job["bits"], job["group_size"], job["symmetric"])
    print("environment", os.environ["GPTQMODEL_CPU_WORKERS"], os.environ["HF_HUB_OFFLINE"])
    Path("litter").touch()
    tempfile.mkdtemp()
    output = Path(job["output"])
    shutil.copytree(job["model"], output)
    (output / "tokenizer.json").write_text("rewritten by the engine")
    config = json.loads((output / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "gptq"}
    (output / "config.json").write_text(json.dumps(config))
"""
TOKENS = torch.arange(16).reshape(2, 8)


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("LLMOPT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("LLMOPT_ENVIRONMENT_GPTQMODEL", sys.executable)
    monkeypatch.setattr("llmopt.quantize.engines.catalogue.ENGINES", (STUB,))
    return tmp_path / "cache"


@pytest.fixture
def worker(tmp_path, monkeypatch):
    """Put a worker script in the place of the real ones."""
    directory = tmp_path / "workers"
    directory.mkdir()
    shutil.copy(WORKERS / "run_job.py", directory)
    for module in ("worker", "run"):
        monkeypatch.setattr(f"llmopt.quantize.engines.{module}.WORKERS", directory)

    def write(code: str) -> None:
        (directory / "stub_worker.py").write_text(code)

    write(COPIES)
    return write


@pytest.fixture
def source(tiny_llama, tmp_path):
    path = tmp_path / "model"
    shutil.copytree(tiny_llama, path)
    (path / "tokenizer.json").write_text("of the source")
    return path


@pytest.fixture
def request_of(source, tmp_path):
    def make(**changes) -> EngineRequest:
        data = CalibrationData(TOKENS, "numbers", "abc", 3)
        settings = {"model": source, "out": tmp_path / "out", "method": "gptq"}
        settings |= {"spec": QuantSpec(4, 32), "calibration": data, **changes}
        return EngineRequest(**settings)

    return make


def left_over(directory: Path) -> list[str]:
    return [path.name for path in directory.iterdir() if path.name.startswith(".out")]


def logs(cache: Path) -> list[Path]:
    return sorted((cache / "logs").glob("*"))


def test_success(worker, request_of, cache, tmp_path):
    lines: list[str] = []
    summary = quantize_with_engine("stub", request_of(), lines.append)
    assert lines == ["tokens [8, 9, 10] 4 32 True", "environment 2 1"]
    assert (summary.scheme, summary.engine) == ("gptq-w4g32", "stub")
    assert summary.versions == {"torch": torch.__version__}
    out = CheckpointReader(tmp_path / "out")
    assert summary.file_bytes == out.num_bytes
    assert (out.path / "tokenizer.json").read_text() == "of the source"
    record = json.loads((out.path / "quantization.json").read_text())
    assert record["engine"] == {"name": "stub", "versions": summary.versions}
    assert record["calibration"]["num_samples"] == 2
    assert record["spec"] == {"bits": 4, "group_size": 32, "symmetric": True}
    assert not Path("litter").exists()
    assert (left_over(tmp_path), logs(cache)) == ([], [])


def test_relative_paths(worker, request_of, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    request = request_of(model=Path("model"), out=Path("sub/out"))
    assert quantize_with_engine("stub", request, lambda line: None).out == Path("sub/out")
    assert (tmp_path / "sub" / "out" / "config.json").is_file()


@pytest.mark.parametrize(
    ("code", "said"),
    [
        ("def quantize(job): raise ValueError('no such\\nthing')", "ValueError: no such"),
        ("raise ImportError('libfoo.so')", "ImportError: libfoo.so"),
        ("import os\nprint('almost'); os._exit(7)", "stub failed: almost"),
        ("import os\nos._exit(7)", "it ended with status 7"),
        ("import os\nos.kill(os.getpid(), 9)", "signal 9, most likely for lack of memory"),
        ("import os\nos.kill(os.getpid(), 11)", "ended by signal 11"),
        ("def quantize(job): pass", "wrote no checkpoint that opens"),
        (
            "import shutil\ndef quantize(job): shutil.copytree(job['model'], job['output'])",
            "not quantized",
        ),
        (COPIES + "    (output / 'model.safetensors').write_bytes(b'1')", "no checkpoint that"),
    ],
)
def test_failures_say_why_and_leave_no_output(worker, request_of, tmp_path, code, said):
    worker(code)
    with pytest.raises(BackendError, match=said):
        quantize_with_engine("stub", request_of(), lambda line: None)
    assert not (tmp_path / "out").exists()
    assert left_over(tmp_path) == []


def test_the_log_of_a_failure_is_kept_and_named(worker, request_of, cache):
    worker("def quantize(job):\n    print('a detail')\n    raise ValueError('x')")
    with pytest.raises(BackendError) as error:
        quantize_with_engine("stub", request_of(), lambda line: None)
    (log,) = logs(cache)
    assert str(log) in str(error.value)
    assert "a detail" in log.read_text()
    assert "Traceback" in log.read_text()


def test_an_interrupt_ends_the_worker_and_leaves_nothing(worker, request_of, cache, tmp_path):
    worker(
        "import os, time\ndef quantize(job):\n"
        "    os.mkdir(job['output'])\n    print(os.getpid(), flush=True)\n    time.sleep(60)"
    )
    seen: list[int] = []

    def interrupt(line: str) -> None:
        seen.append(int(line))
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        quantize_with_engine("stub", request_of(), interrupt)
    with pytest.raises(ProcessLookupError):
        os.kill(seen[0], 0)
    assert not (tmp_path / "out").exists()
    assert (left_over(tmp_path), logs(cache)) == ([], [])


def test_a_worker_ends_with_its_parent(worker, tmp_path):
    """Even when the parent is killed and cannot clean up."""
    job = {"worker": str(tmp_path / "sleeper.py"), "result": str(tmp_path / "result.json")}
    (tmp_path / "sleeper.py").write_text(
        "import time\ndef quantize(job): print('up', flush=True); time.sleep(60)"
    )
    (tmp_path / "job.json").write_text(json.dumps(job))
    process = subprocess.Popen(
        [sys.executable, str(WORKERS / "run_job.py"), str(tmp_path / "job.json")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert process.stdout is not None
    assert process.stdin is not None
    process.stdout.readline()
    started = time.monotonic()
    process.stdin.close()
    assert process.wait(timeout=20) == 1
    assert time.monotonic() - started < 20
    process.stdout.close()


def test_an_absent_environment_names_the_command(request_of, monkeypatch, tmp_path):
    monkeypatch.delenv("LLMOPT_ENVIRONMENT_GPTQMODEL")
    with pytest.raises(BackendError, match="`llmopt backend install gptqmodel`"):
        quantize_with_engine("stub", request_of(), lambda line: None)
    assert not (tmp_path / "out").exists()


def test_an_environment_that_does_not_start(request_of, monkeypatch, tmp_path):
    (tmp_path / "python").write_text("#!/no/such/interpreter\n")
    (tmp_path / "python").chmod(0o755)
    monkeypatch.setenv("LLMOPT_ENVIRONMENT_GPTQMODEL", str(tmp_path / "python"))
    with pytest.raises(BackendError, match="cannot be started"):
        quantize_with_engine("stub", request_of(), lambda line: None)


def test_no_gpu(request_of, monkeypatch):
    import dataclasses

    engine = dataclasses.replace(STUB, needs_cuda=True)
    monkeypatch.setattr("llmopt.quantize.engines.catalogue.ENGINES", (engine,))
    monkeypatch.setattr("llmopt.quantize.engines.run.has_nvidia_driver", lambda: False)
    with pytest.raises(BackendError, match="NVIDIA GPUs only"):
        quantize_with_engine("stub", request_of(), lambda line: None)


def test_an_output_that_is_there(request_of, tmp_path):
    (tmp_path / "out").mkdir()
    with pytest.raises(OutputError, match="exists already"):
        quantize_with_engine("stub", request_of(), lambda line: None)


def test_a_source_that_is_quantized_already(request_of, source):
    config = json.loads((source / "config.json").read_text())
    (source / "config.json").write_text(json.dumps(config | {"quantization_config": {}}))
    with pytest.raises(QuantizationError, match="quantized already"):
        quantize_with_engine("stub", request_of(), lambda line: None)


@pytest.mark.usefixtures("worker")
def test_a_source_with_a_malformed_or_an_empty_quantization_config(request_of, source):
    config = json.loads((source / "config.json").read_text())
    (source / "config.json").write_text(json.dumps(config | {"quantization_config": []}))
    with pytest.raises(CheckpointError, match="no JSON object"):
        quantize_with_engine("stub", request_of(), lambda line: None)
    (source / "config.json").write_text(json.dumps(config | {"quantization_config": None}))
    quantize_with_engine("stub", request_of(), lambda line: None)


def test_gguf_files_go_in_and_out(worker, request_of, tmp_path):
    worker(
        "import json, struct\nfrom pathlib import Path\ndef quantize(job):\n"
        "    matrix = job['importance']\n"
        "    raw = Path(matrix['file']).read_bytes()\n"
        "    print(matrix['tensors'], struct.unpack('3f', raw), job['gguf_type'])\n"
        "    Path(job['output']).write_bytes(b'GGUF and more')"
    )
    (tmp_path / "m.gguf").write_bytes(b"GGUF")
    request = request_of(
        model=tmp_path / "m.gguf",
        out=tmp_path / "q.gguf",
        method="gguf",
        spec=None,
        gguf_type="q8_0",
        importance={"a": torch.tensor([1.0, 2.0]), "b": torch.tensor([0.5])},
    )
    lines: list[str] = []
    summary = quantize_with_engine("stub", request, lines.append)
    assert lines == ["{'a': 2, 'b': 1} (1.0, 2.0, 0.5) q8_0"]
    assert summary.file_bytes == 13
    assert (tmp_path / "q.gguf").read_bytes() == b"GGUF and more"


def test_a_directory_is_no_gguf_file(request_of):
    with pytest.raises(UsageError, match="GGUF file in float16"):
        quantize_with_engine(
            "stub", request_of(method="gguf", spec=None, gguf_type="q8_0"), lambda line: None
        )


@pytest.mark.usefixtures("interruptible")
def test_the_command_line_interrupt_reaches_the_worker(worker, request_of, tmp_path):
    """Ctrl-C at a terminal arrives as SIGINT at this process only."""
    worker("import os, time\ndef quantize(job):\n    print('up', flush=True)\n    time.sleep(60)")
    with pytest.raises(KeyboardInterrupt):
        quantize_with_engine("stub", request_of(), lambda line: os.kill(os.getpid(), signal.SIGINT))
    assert left_over(tmp_path) == []
