"""`make gpu-check` without a GPU: it refuses, and its stages run with a tiny model."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from bench import gpu_check
from bench.engine_check import LARGE, TINY, check_engine
from bench.gpu_check import main
from bench.repeated_weights import make_large_model
from llmopt.models.dummy import read_config
from llmopt.results.kernels import read_kernel_result

CPU = torch.device("cpu")
ROOT = Path(__file__).parents[3]
SHIPPED = ROOT / "recipes" / "configs" / "llama-3.1-8b.json"
CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "vocab_size": 128,
    "hidden_size": 128,
    "intermediate_size": 256,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "hidden_act": "silu",
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
}


@pytest.fixture
def config(tmp_path, monkeypatch):
    monkeypatch.setenv("LLMOPT_NATIVE", "0")  # compiling it could take the time of a stage
    path = tmp_path / "config.json"
    path.write_text(json.dumps(CONFIG))
    return path


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_says_so_in_one_sentence(tmp_path):
    environment = os.environ | {"PYTHONPATH": f"{ROOT}:{ROOT / 'kernels'}"}
    done = subprocess.run(
        [sys.executable, "-m", "bench.gpu_check", "--out", str(tmp_path / "out")],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        cwd=ROOT,
    )
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert "needs a CUDA device" in line
    assert done.stdout == ""
    assert not (tmp_path / "out").exists()


def test_missing_packages_are_named(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(gpu_check, "_NEEDED", ("torch", "no_such_package"))
    assert main(["--out", str(tmp_path), "--device", "cpu"]) == 2
    assert capsys.readouterr().err.strip().endswith("pip install no_such_package")


def test_it_runs_where_gguf_is_not_installed(tmp_path, config):
    words = ["--out", f"{tmp_path}/out", "--device", "cpu", "--tiny", "--config", str(config)]
    code = f"""
import sys
sys.modules["gguf"] = None  # what is not installed
from bench.gpu_check import main
sys.exit(main({words}))
"""
    environment = os.environ | {"PYTHONPATH": f"{ROOT}:{ROOT / 'kernels'}", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr + done.stdout[-2000:]
    assert read_kernel_result(tmp_path / "out" / "kernels.json").unfinished == ()


def test_all_stages_leave_their_files(tmp_path, config, capsys):
    out = tmp_path / "out"
    words = ["--device", "cpu", "--tiny", "--time", "40", "--config", str(config)]
    assert main(["--out", str(out), *words]) == 0
    result = read_kernel_result(out / "kernels.json")
    assert result.unfinished == ()
    assert {row.kernel for row in result.rows} >= {"wna16", "paged_attention", "sampling"}
    assert all(row.problem is None for row in result.rows)
    stages = [(row.scheme, row.stage, row.batch, row.context) for row in result.engine]
    decodes = [("decode", 1, 15), ("decode", 3, 15), ("prefill", 1, 20)]
    assert stages == [(s, *rest) for s in ("bf16", "w4g128", "fp8") for rest in decodes]
    assert all(row.step_s > row.host_s > 0 for row in result.engine)
    checked = json.loads((out / "correctness.json").read_text())["rows"]
    assert all(row["median_s"] is None for row in checked)
    printed = capsys.readouterr().out
    assert "targets" in printed
    assert "targets" in (out / "kernels.txt").read_text()


def test_what_the_time_does_not_reach_is_named_and_fails(tmp_path, config):
    out = tmp_path / "out"
    words = ["--device", "cpu", "--tiny", "--time", "0", "--config", str(config)]
    assert main(["--out", str(out), *words]) == 1, "no row of the engine"
    unfinished = read_kernel_result(out / "kernels.json").unfinished
    assert {"engine bf16", "engine w4g128", "engine fp8"} <= set(unfinished)
    assert "kernels wna16" in unfinished
    assert "correctness wna16" in unfinished


def test_a_scheme_that_fails_is_a_row_and_the_others_go_on(config):
    rows = list(check_engine(config, "w5g7", CPU, TINY, {}, lambda: False))
    assert len(rows) == 1
    assert rows[0].step_s is None
    assert "5-bit weights are not supported" in rows[0].problem


def test_steps_move_what_the_model_and_the_cache_hold(config):
    rows = list(check_engine(config, None, CPU, TINY, {}, lambda: False))
    weights = 2 * (2 * (128 * (128 + 2 * 64) + 128 * 128 + 3 * 128 * 256) + 128 * 128)
    kv = 2 * 2 * 2 * 64  # bytes, keys and values, layers, channels
    one, three, prompt = rows
    assert one.num_bytes == weights + 15 * kv
    assert three.num_bytes == weights + 3 * 15 * kv
    assert one.num_flops == weights + 15 * 2 * 4 * 128
    head = 2 * 128 * 128
    assert prompt.num_flops == 20 * (weights - head) + head + 210 * 2 * 4 * 128
    assert prompt.step_s > 0


def test_layers_of_one_shape_have_memory_of_their_own(config):
    drawn = {}
    model = make_large_model(config, None, CPU, drawn)
    first, second = (block.mlp.down.weight for block in model.blocks)
    assert torch.equal(first, second)
    again = make_large_model(config, "w4g128", CPU, drawn)
    assert torch.equal(again.embedding, model.embedding)
    assert again.weight_bytes < model.weight_bytes


def test_the_shipped_config_is_of_8b_parameters():
    settings = read_config(SHIPPED)
    hidden, inner = settings["hidden_size"], settings["intermediate_size"]
    heads, kv = settings["num_attention_heads"], settings["num_key_value_heads"]
    per_layer = hidden * (2 * heads + 2 * kv) * 128 + 3 * hidden * inner
    total = settings["num_hidden_layers"] * per_layer + 2 * hidden * settings["vocab_size"]
    assert total == pytest.approx(8.03e9, rel=0.001)


def test_the_loads_are_those_that_were_asked_for():
    assert LARGE.batches == (1, 8, 64, 256)
    assert LARGE.prompts == (2048, 8192)
    config = LARGE.engine_config()
    assert config.max_num_batched_tokens == 8192, "a prompt is one step"
    assert config.num_blocks * 16 >= 256 * LARGE.decode_len
    assert not config.prefix_caching
