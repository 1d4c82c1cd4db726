"""The worker scripts, as far as they can be tried without their engines."""

import ast
import json
import os
import runpy
import subprocess
import sys
import types

import pytest
import torch
from safetensors.torch import save_file

from llmopt.quantize.engines.catalogue import ENGINES
from llmopt.quantize.engines.worker import WORKERS

SCRIPTS = sorted(WORKERS.glob("*_worker.py"))


@pytest.mark.parametrize("script", [*SCRIPTS, WORKERS / "run_job.py"], ids=lambda s: s.stem)
def test_workers_know_nothing_of_llmopt(script):
    """They run where it is not installed."""
    imported = {
        name.split(".")[0]
        for node in ast.walk(ast.parse(script.read_text()))
        for name in (
            [alias.name for alias in node.names]
            if isinstance(node, ast.Import)
            else [node.module or ""]
            if isinstance(node, ast.ImportFrom)
            else []
        )
    }
    assert not {name for name in imported if name.startswith("llmopt")}
    if script.name == "run_job.py":
        assert imported <= sys.stdlib_module_names


def test_every_worker_belongs_to_an_engine():
    assert {engine.worker for engine in ENGINES} == {script.name for script in SCRIPTS}


def run_job(tmp_path, code: str) -> tuple[int, dict]:
    (tmp_path / "worker.py").write_text(code)
    result = tmp_path / "result.json"
    job = {"worker": str(tmp_path / "worker.py"), "result": str(result), "packages": ["rich"]}
    (tmp_path / "job.json").write_text(json.dumps(job))
    reader, writer = os.pipe()  # an input that stays open, as the parent's pipe does
    try:
        done = subprocess.run(
            [sys.executable, str(WORKERS / "run_job.py"), str(tmp_path / "job.json")],
            stdin=reader,
            capture_output=True,
            check=False,
            timeout=60,
        )
    finally:
        os.close(reader)
        os.close(writer)
    return done.returncode, json.loads(result.read_text())


def test_a_job_reports_versions(tmp_path):
    status, result = run_job(tmp_path, "def quantize(job): pass")
    assert status == 0
    assert set(result["versions"]) == {"rich"}


def test_a_failed_job_reports_its_reason(tmp_path):
    status, result = run_job(tmp_path, "def quantize(job): raise KeyError('bits')")
    assert (status, result) == (1, {"error": "KeyError: 'bits'"})


def test_threads_that_are_left_do_not_keep_a_job_alive(tmp_path):
    code = (
        "import threading, time\n"
        "def quantize(job): threading.Thread(target=time.sleep, args=(50,)).start()"
    )
    assert run_job(tmp_path, code)[0] == 0


@pytest.fixture(scope="module")
def check_scales():
    return runpy.run_path(str(WORKERS / "bitsandbytes_worker.py"))["check_scales"]


@pytest.mark.parametrize(
    ("absmax", "double_quant", "good"),
    [
        (torch.zeros(128), False, True),
        (torch.zeros(128, dtype=torch.uint8), True, True),
        (torch.zeros(4, 32, dtype=torch.bfloat16), False, False),  # after a forward pass
        (torch.zeros(128), True, False),
        (torch.zeros(127), False, False),
    ],
)
def test_scales_that_were_repacked_are_refused(tmp_path, check_scales, absmax, double_quant, good):
    packed = torch.zeros(64 * 128 // 2, 1, dtype=torch.uint8)
    tensors = {"a.weight": packed, "a.weight.absmax": absmax, "norm.weight": torch.ones(3)}
    save_file(tensors, tmp_path / "model.safetensors")
    if good:
        check_scales(tmp_path / "model.safetensors", double_quant)
        return
    with pytest.raises(ValueError, match=r"a\.weight\.absmax was saved as"):
        check_scales(tmp_path / "model.safetensors", double_quant)


@pytest.mark.parametrize(
    ("rope", "theta", "scaling"),
    [
        ({"rope_theta": 5e5, "rope_type": "default"}, 5e5, None),
        (
            {"rope_theta": 5e5, "rope_type": "linear", "factor": 2.0},
            5e5,
            {"rope_type": "linear", "factor": 2.0},
        ),
    ],
)
def test_configs_are_made_older_for_auto_gptq(tmp_path, monkeypatch, rope, theta, scaling):
    stub = types.ModuleType("auto_gptq")
    stub.AutoGPTQForCausalLM = stub.BaseQuantizeConfig = None
    monkeypatch.setitem(sys.modules, "auto_gptq", stub)
    functions = runpy.run_path(str(WORKERS / "auto_gptq_worker.py"))
    model = tmp_path / "model"
    model.mkdir()
    (model / "model.safetensors").write_bytes(b"weights")
    config = {"model_type": "llama", "dtype": "bfloat16", "rope_parameters": rope}
    (model / "config.json").write_text(json.dumps(config))
    view = functions["with_older_config"](model, tmp_path / "older")
    assert (view / "model.safetensors").read_bytes() == b"weights"
    older = json.loads((view / "config.json").read_text())
    assert (older["rope_theta"], older["rope_scaling"]) == (theta, scaling)
    assert older["torch_dtype"] == "bfloat16"
    assert json.loads((model / "config.json").read_text()) == config
