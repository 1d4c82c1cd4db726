"""The command line as a user meets it: real processes, exit codes, one-sentence errors."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from llmopt.formats.checkpoint import CheckpointReader


def command(*args: str | Path) -> list[str]:
    return [sys.executable, "-m", "llmopt", *map(str, args)]


def run(*args: str | Path, **env: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", **env}
    return subprocess.run(
        command(*args), capture_output=True, text=True, check=False, timeout=300, env=environment
    )


def assert_refused(done: subprocess.CompletedProcess[str], *words: str) -> None:
    """Exit code 2, nothing on standard output, one sentence with the remedy, no traceback."""
    assert done.returncode == 2, done.stderr
    assert done.stdout == ""
    assert "Traceback" not in done.stderr
    errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1, done.stderr
    for word in words:
        assert word in errors[0]


@pytest.fixture(scope="module", autouse=True)
def _own_cache(tmp_path_factory) -> Iterator[None]:
    """What the commands keep does not go into the user's cache."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LLMOPT_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="module")
def model(make_tiny_llama, tmp_path_factory) -> Path:
    """A tiny model with a byte-level tokenizer."""
    path = shutil.copytree(
        make_tiny_llama(vocab_size=260, max_position_embeddings=1024),
        tmp_path_factory.mktemp("cli") / "tiny",
    )
    write_byte_tokenizer(path)
    return path


def write_byte_tokenizer(path: Path) -> None:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: i for i, token in enumerate(["<unk>", "<s>", "</s>", *alphabet])}
    inner = Tokenizer(models.BPE(vocab=vocabulary, merges=[], unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=inner, unk_token="<unk>", bos_token="<s>", eos_token="</s>"
    )
    tokenizer.save_pretrained(path)


@pytest.fixture
def recipe(model, tmp_path) -> Path:
    path = tmp_path / "small.yaml"
    path.write_text(
        f"""
name: small
base: {{model: {model}, dtype: float32}}
targets:
  - {{name: rtn-w4g32, model: {model}, quantize: {{method: rtn, bits: 4, group_size: 32}}}}
loads:
  - {{concurrency: 2, num_requests: 4, prompt_tokens: 16, output_tokens: 4}}
repeats: 2
quality: {{text: bundled, window: 64, num_windows: 4}}
"""
    )
    return path


def test_the_main_job_from_quantizing_to_the_report(model, tmp_path):
    small = ("--samples", "4", "--sample-tokens", "64", "--group-size", "32")
    quantized = run("quantize", model, "--out", tmp_path / "w4", *small, "--json")
    assert quantized.returncode == 0, quantized.stderr
    assert json.loads(quantized.stdout)["bits_per_weight"] > 4

    generated = run("generate", tmp_path / "w4", "-p", "ab", "--max-tokens", "5", "--json")
    assert generated.returncode == 0, generated.stderr
    assert 1 <= len(json.loads(generated.stdout)[0]["token_ids"]) <= 5

    windows = ("--window", "64", "--num-windows", "4")
    evaluated = run("eval", tmp_path / "w4", "--base", model, *windows, "--json")
    assert evaluated.returncode == 0, evaluated.stderr
    assert json.loads(evaluated.stdout)["quality"]["kld_mean"] > 0

    load = ("--concurrency", "1", "--prompt-tokens", "16", "--output-tokens", "4")
    load = (*load, "--requests", "2", "--repeats", "2", "--no-quality")
    out = tmp_path / "results"
    benched = run("bench", model, tmp_path / "w4", "--out", out, *load)
    assert benched.returncode == 0, benched.stderr
    assert "w4" in benched.stdout
    files = list(out.rglob("0001-*.json"))
    assert len(files) == 2

    markdown = run("report", out, "--format", "markdown", "--out", tmp_path / "table.md")
    assert markdown.returncode == 0, markdown.stderr
    assert "| " in (tmp_path / "table.md").read_text()


@pytest.fixture(scope="module")
def damaged(model, tmp_path_factory) -> Path:
    """The tiny model, rounded to 2 bits."""
    path = tmp_path_factory.mktemp("damaged") / "w2"
    scheme = ("--method", "rtn", "--bits", "2", "--group-size", "32")
    done = run("quantize", model, "--out", path, *scheme)
    assert done.returncode == 0, done.stderr
    return path


def test_eval_says_how_much_was_lost_and_keeps_the_record(model, damaged, tmp_path):
    record = tmp_path / "new" / "record.json"
    asked = ("--base", model, "--window", "64", "--num-windows", "8", "--out", record)
    first = run("eval", damaged, *asked)
    assert first.returncode == 0, first.stderr
    lines = first.stdout.splitlines()
    assert max(map(len, lines)) <= 100
    for words in (
        "w2 (rtn-w2g32) against",
        "perplexity (windows)",
        "99.9 %",
        "Δp of the right token",
        "tokens before",
        "noise floor",
        "the base in bf16",
    ):
        assert any(words in line for line in lines), first.stdout
    document = json.loads(record.read_text())
    quality = document["quality"]
    assert document["scheme"] == "rtn-w2g32"
    assert quality["num_windows"] == 8
    assert quality["verdict"]["times_noise"] > 10
    assert quality["verdict"]["text"] in " ".join(first.stdout.split())
    assert 0 < quality["base_cache_error"] < 1e-5
    again = run("eval", damaged, *asked, "--no-cache", "--no-noise", "--json")
    without = json.loads(again.stdout)["quality"]
    assert without["base_cache_error"] is without["noise"] is without["verdict"] is None
    assert without["kld_mean"] == pytest.approx(quality["kld_mean"], rel=1e-3)


def test_eval_without_a_base_is_perplexity_under_a_named_protocol(model):
    for protocol in ("llama.cpp", "rolling"):
        asked = ("--protocol", protocol, "--window", "64", "--num-windows", "4")
        done = run("eval", model, *asked)
        assert done.returncode == 0, done.stderr
        assert f"perplexity ({protocol})" in done.stdout
        assert f"bits per byte ({protocol})" in done.stdout
        assert ("word perplexity" in done.stdout) == (protocol == "rolling")


def test_eval_stops_once_the_interval_is_narrow(model, damaged):
    asked = ("--base", model, "--window", "64", "--until-ci", "50%", "--json")
    done = run("eval", damaged, *asked)
    assert done.returncode == 0, done.stderr
    quality = json.loads(done.stdout)["quality"]
    assert 8 <= quality["num_windows"] < 100
    assert quality["noise"] is not None


def test_eval_measures_tasks_greedy_outputs_and_layers_too(model, damaged, tmp_path):
    requests = tmp_path / "yes-no.jsonl"
    items = [
        {"id": str(i), "context": f"Is {i} even?", "choices": [" yes", " no"], "gold": i % 2}
        for i in range(6)
    ]
    requests.write_text("".join(json.dumps(item) + "\n" for item in items))
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("abc\ndef\n")
    page = tmp_path / "atlas.html"
    asked = ("--no-divergence", "--requests", requests, "--limit", "5", "--prompts", prompts)
    atlas = ("--atlas", "--html", page, "--window", "64", "--num-windows", "2")
    done = run("eval", damaged, "--base", model, *asked, *atlas, "--out", tmp_path / "all.json")
    assert done.returncode == 0, done.stderr
    document = json.loads((tmp_path / "all.json").read_text())
    assert document["quality"] is document["prediction"] is None
    (report,) = document["tasks"]
    assert [task["task"] for task in report["tasks"]] == ["yes-no"]
    assert len(report["tasks"][0]["items"]) == 5
    assert len(document["greedy"]["target"]["prompts"]) == 2
    blocks = [part["label"] for part in document["atlas"]["parts"] if part["kind"] == "block"]
    assert len(blocks) == 2
    assert all(label in done.stdout for label in ("yes-no", *blocks))
    assert max(map(len, done.stdout.splitlines())) <= 100
    assert page.read_text().lstrip().startswith("<!")


def test_eval_refuses_what_makes_no_sense(model, tmp_path):
    assert_refused(run("eval", model, "--greedy"), "--greedy compares with a base", "--base")
    assert_refused(run("eval", model, "--text", tmp_path / "no.txt"), "no.txt")
    unknown = run("eval", model, "--protocol", "none")
    assert unknown.returncode == 2
    assert "Traceback" not in unknown.stderr


def test_a_recipe_writes_one_result_per_cell(recipe, tmp_path):
    done = run("bench", recipe, "--out", tmp_path / "out")
    assert done.returncode == 0, done.stderr
    assert len(list(tmp_path.rglob("0001-*.json"))) == 2
    reported = run("report", tmp_path / "out", "--format", "json")
    assert reported.returncode == 0, reported.stderr
    assert "rtn-w4g32" in reported.stdout


def test_a_recipe_without_loads_compares_methods_and_draws_them(recipe, tmp_path):
    lines = recipe.read_text().splitlines(keepends=True)
    scheme = "{method: rtn, bits: 4, group_size: 32}"
    kept = [line.replace(scheme, "rtn-w4g32") for line in lines if "conc" not in line]
    recipe.write_text("".join(line for line in kept if not line.startswith("loads")))
    done = run("bench", recipe, "--out", tmp_path / "out")
    assert done.returncode == 0, done.stderr
    assert "seconds" in done.stdout
    picture = tmp_path / "picture.png"
    reported = run("report", tmp_path / "out", "--png", picture)
    assert reported.returncode == 0, reported.stderr
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_a_wrong_scheme_in_a_recipe_is_refused_with_its_place(recipe):
    recipe.write_text(recipe.read_text().replace("{method: rtn, bits: 4, group_size: 32}", "nf5"))
    assert_refused(run("bench", recipe), "small.yaml:5: 'nf5' is no quantization scheme")


def test_a_cell_that_fails_is_a_row_and_an_exit_code(recipe, tmp_path):
    recipe.write_text(recipe.read_text().replace("group_size: 32", "group_size: 48"))
    done = run("bench", recipe, "--out", tmp_path / "out")
    assert done.returncode == 1
    assert "1 of 2 cells failed" in done.stderr
    assert "Traceback" not in done.stderr
    assert "group size 48 does not divide" in " ".join(done.stdout.split())
    assert len(list((tmp_path / "out").rglob("0001-*.json"))) == 2


def test_an_interrupted_sweep_says_so_and_goes_on_where_it_stopped(recipe, tmp_path):
    recipe.write_text(recipe.read_text().replace("repeats: 2", "repeats: 40"))
    out = tmp_path / "out"
    process = subprocess.Popen(
        command("bench", recipe, "--out", out), stderr=subprocess.PIPE, text=True
    )
    deadline = time.monotonic() + 200
    while not partial_runs(out) and time.monotonic() < deadline and process.poll() is None:
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130, errors
    assert "Traceback" not in errors
    assert "interrupted" in errors
    kept = partial_runs(out)
    assert kept >= 1
    recipe.write_text(recipe.read_text().replace("repeats: 40", "repeats: 2"))
    done = run("bench", recipe, "--out", out)
    assert done.returncode == 0, done.stderr
    assert partial_runs(out) == 0
    assert len(list(out.rglob("0001-*.json"))) == 2


def partial_runs(out: Path) -> int:
    return sum(len(json.loads(p.read_text())["runs"]) for p in out.rglob("partial.json"))


def test_interrupted_quantization_leaves_no_output(model, tmp_path):
    process = subprocess.Popen(
        command("quantize", model, "--out", tmp_path / "w4", "--group-size", "32"),
        stderr=subprocess.PIPE,
        text=True,
    )
    deadline = time.monotonic() + 200
    while not list(tmp_path.glob(".w4.*")) and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130, errors
    assert "Traceback" not in errors
    assert [path.name for path in tmp_path.iterdir()] in ([], [".w4.resume"])
    done = run("quantize", model, "--out", tmp_path / "w4", "--group-size", "32")
    assert done.returncode == 0, done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["w4"]


def test_interrupted_generation_shows_what_there_is(model):
    asked = ("--max-tokens", "900", "--ignore-eos", "--json")
    process = subprocess.Popen(
        command("generate", model, "-p", "abc", *asked),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"},
    )
    assert process.stderr is not None
    for line in process.stderr:  # the model is loaded, generation has begun
        if line.startswith("load it"):
            break
    time.sleep(0.3)
    process.send_signal(signal.SIGINT)
    output, errors = process.communicate(timeout=60)
    assert process.returncode == 130, errors
    assert "Traceback" not in errors
    (shown,) = json.loads(output)
    assert len(shown["token_ids"]) < 900
    assert shown["finish_reason"] is None


def test_a_missing_model_is_one_sentence(tmp_path):
    assert_refused(run("generate", tmp_path / "nothing", "-p", "x"), "nothing", "Give a")


def test_a_truncated_checkpoint_is_one_sentence(model, tmp_path):
    broken = shutil.copytree(model, tmp_path / "broken")
    weights = broken / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:5000])
    assert_refused(run("quantize", broken, "--out", tmp_path / "q", "--method", "rtn"), "truncated")
    assert not (tmp_path / "q").exists()


def test_an_unknown_architecture_names_the_supported_ones(model, tmp_path):
    other = shutil.copytree(model, tmp_path / "other")
    config = json.loads((other / "config.json").read_text())
    config["architectures"] = ["MambaForCausalLM"]
    (other / "config.json").write_text(json.dumps(config))
    assert_refused(run("generate", other, "-p", "x"), "MambaForCausalLM", "LlamaForCausalLM")


def test_an_impossible_group_size_names_those_that_fit(model, tmp_path):
    done = run("quantize", model, "--out", tmp_path / "q", "--group-size", "128")
    assert_refused(done, "128", "32")
    assert not (tmp_path / "q").exists()


def test_an_existing_output_is_not_overwritten(model, tmp_path):
    (tmp_path / "q").mkdir()
    assert_refused(run("quantize", model, "--out", tmp_path / "q"), "exists already")


def test_an_output_below_a_file_is_refused(model, tmp_path):
    (tmp_path / "file").write_text("")
    done = run("quantize", model, "--out", tmp_path / "file" / "q", "--method", "rtn")
    assert_refused(done, "cannot be written")
    assert_refused(run("bench", model, "--out", tmp_path / "file" / "r"), "a file is in the way")


def test_a_malformed_recipe_names_the_line(recipe, tmp_path):
    recipe.write_text(recipe.read_text().replace("repeats:", "repeat:"))
    assert_refused(run("bench", recipe, "--out", tmp_path / "o"), "small.yaml:", "repeats")


def test_damaged_results_are_named(tmp_path):
    (tmp_path / "x.json").write_text("{")
    assert_refused(run("report", tmp_path), "x.json")


def test_no_network_and_no_cache_is_one_sentence(tmp_path):
    offline = {"LLMOPT_CACHE": str(tmp_path / "cache"), "PIP_NO_INDEX": "1", "PIP_FIND_LINKS": ""}
    assert_refused(run("generate", "smollm2-135m", "-p", "x", **offline), "smollm2-135m")
    hub = {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "hf")}
    assert_refused(run("generate", "some-org/some-model", "-p", "x", **hub), "some-org/some-model")


def test_usage_errors_are_not_tracebacks(model):
    done = run("generate", model, "--temperature", "hot")
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    assert_refused(run("generate", model), "no prompt")
    assert_refused(run("bench", model, "--concurrency", "a"), "--concurrency")


def test_doctor_knows_this_machine():
    findings = json.loads(run("doctor", "--json").stdout)
    states = {finding["name"]: finding["state"] for finding in findings}
    assert states["torch"] == "ok"
    assert all(finding["command"] for finding in findings if finding["state"] == "missing")


def test_quantized_checkpoints_are_standard_gptq(model, tmp_path):
    done = run("quantize", model, "--out", tmp_path / "q", "--method", "rtn", "--group-size", "32")
    assert done.returncode == 0, done.stderr
    reader = CheckpointReader(tmp_path / "q")
    assert reader.config["quantization_config"]["quant_method"] == "gptq"
    assert "model.layers.0.self_attn.q_proj.qweight" in reader
    assert (tmp_path / "q" / "tokenizer.json").exists()
