"""`llmopt quantize` with every format, as a user meets it."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from llmopt.formats.checkpoint import CheckpointReader


@pytest.fixture
def quantize(tmp_path):
    """Run the command with a cache of its own."""

    def run(*args: str | Path) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "llmopt", "quantize", *map(str, args)],
            capture_output=True,
            text=True,
            check=False,
            timeout=300,
            env={**os.environ, "OMP_NUM_THREADS": "1", "LLMOPT_CACHE": str(tmp_path / "cache")},
        )

    return run


@pytest.fixture(scope="module")
def model(make_tiny_llama) -> Path:
    """A tiny model with a tokenizer: one token per byte."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    path = make_tiny_llama(vocab_size=512)
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: i for i, token in enumerate(["<unk>", "<s>", "</s>", *alphabet])}
    inner = Tokenizer(models.BPE(vocab=vocabulary, merges=[], unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=inner, unk_token="<unk>", bos_token="<s>", eos_token="</s>"
    )
    tokenizer.save_pretrained(path)
    return path


SMALL = ("--samples", "4", "--sample-tokens", "64")
SCHEMES = "gptq-w4g32,awq-w4g32-asym,nf4-dq,w8a8,gguf-q8_0"


@pytest.mark.parametrize("name", ["gptq", "awq", "compressed-tensors"])
def test_asymmetric_weights_in_every_format(tiny_llama, tmp_path, name, quantize):
    args = ("--method", "rtn", "--group-size", "32", "--asymmetric", "--format", name, "--json")
    done = quantize(tiny_llama, "--out", tmp_path / "out", *args)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["out"] == str(tmp_path / "out")
    config = CheckpointReader(tmp_path / "out").config["quantization_config"]
    assert config["quant_method"] == name
    record = json.loads((tmp_path / "out" / "quantization.json").read_text())
    assert (record["format"], record["scheme"]) == (name, "rtn-w4g32-asym")


def test_a_format_that_cannot_hold_the_weights_is_refused_at_once(tmp_path, quantize):
    """Before the model is even looked for."""
    done = quantize("no-such-model", "--out", tmp_path / "out", "--bits", "8", "--format", "awq")
    assert done.returncode == 2
    assert done.stdout == ""
    (line,) = (line for line in done.stderr.splitlines() if line.startswith("error: "))
    assert "awq checkpoints hold 4-bit weights in groups of one size" in line
    assert "gptq, compressed-tensors" in line


def refusal(done) -> str:
    assert done.returncode == 2, done.stderr
    assert done.stdout == ""
    (line,) = (line for line in done.stderr.splitlines() if line.startswith("error: "))
    return line


def test_several_schemes_from_one_pass(model, tmp_path, quantize):
    args = (model, "--methods", SCHEMES, *SMALL, "--out", tmp_path / "all")
    done = quantize(*args, "--no-propagate", "--json")
    assert done.returncode == 0, done.stderr
    summaries = json.loads(done.stdout)
    assert [summary["scheme"] for summary in summaries] == SCHEMES.split(",")
    assert all(Path(summary["out"]).is_dir() for summary in summaries)
    assert "keeping statistics of the source" in done.stderr
    assert len(list((tmp_path / "all" / "gguf-q8_0").glob("*-Q8_0.gguf"))) == 1
    run = json.loads((tmp_path / "all" / "w8a8" / "quantization-run.json").read_text())
    assert run["peak_memory"]["host_bytes"] > 1 << 20
    more = quantize(
        model, "--methods", "gptq-w3g32", *SMALL, "--no-propagate", "--out", tmp_path / "all"
    )
    assert more.returncode == 0, more.stderr
    assert "using the statistics of the source" in more.stderr
    assert "gptq-w3g32" in more.stdout  # the table
    assert (tmp_path / "all" / "gptq-w3g32").is_dir()


def test_a_plan_leaves_nothing_and_is_about_right(model, tmp_path, quantize):
    args = (model, "--methods", SCHEMES, *SMALL, "--out", tmp_path / "all", "--json")
    done = quantize(*args, "--plan")
    assert done.returncode == 0, done.stderr
    assert not (tmp_path / "all").exists()
    assert not list(tmp_path.glob(".*"))
    plan = json.loads(done.stdout)
    assert plan["measured_blocks"] == 2
    assert plan["peak"]["host_bytes"] > 1 << 20
    for summary, output in zip(json.loads(quantize(*args).stdout), plan["outputs"], strict=True):
        assert output["scheme"] == summary["scheme"]
        assert output["bits_per_weight"] == pytest.approx(summary["bits_per_weight"], rel=0.35)
        assert output["file_bytes"] - (1 << 20) == pytest.approx(summary["file_bytes"], rel=0.2)


def test_a_plan_of_a_config_alone_says_that_time_is_unknown(tmp_path, quantize):
    config = {
        "architectures": ["LlamaForCausalLM"],
        "hidden_size": 8192,
        "intermediate_size": 28672,
        "num_hidden_layers": 80,
        "num_attention_heads": 64,
        "num_key_value_heads": 8,
        "vocab_size": 128256,
        "rms_norm_eps": 1e-5,
        "max_position_embeddings": 8192,
        "torch_dtype": "bfloat16",
    }
    (tmp_path / "big").mkdir()
    (tmp_path / "big" / "config.json").write_text(json.dumps(config))
    args = ("--group-size", "128", "--samples", "128", "--sample-tokens", "2048", "--plan")
    done = quantize(tmp_path / "big", *args, "--out", tmp_path / "out")
    assert done.returncode == 0, done.stderr
    assert "time: unknown without the weights" in done.stdout
    assert "GB on the compute device" in done.stdout


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (("--methods", "gtpq-w4g64"), "Did you mean gptq-w4g64"),
        (("--methods", "nf4,nf4"), "nf4 was asked for twice"),
        (("--methods", "nf4", "--bits", "4"), "--methods was given together"),
        (("--method", "nf4", "--bits", "4"), "nf4 has no choice of bits"),
        (("--double-quant",), "gptq has no scales to quantize again"),
        (("--method", "gguf"), "--mix and --method gguf belong together"),
        (("--method", "gguf", "--mix", "q9_k"), "q9_k"),
        (("--override", "*.down_proj=bits"), "is no override|means nothing"),
    ],
)
def test_what_makes_no_sense_is_one_sentence(model, tmp_path, quantize, args, message):
    line = refusal(quantize(model, *args, "--out", tmp_path / "out"))
    assert any(part in line for part in message.split("|"))
    assert not (tmp_path / "out").exists()


def test_another_command_does_not_touch_what_is_kept(model, tmp_path, quantize):
    """An interrupted run of other options: said, with the remedy; --restart goes ahead."""
    kept = tmp_path / ".out.resume" / "nf4"
    kept.mkdir(parents=True)
    (kept.parent / "run.json").write_text('{"fingerprint": "of another run"}')
    (kept / "block-00000.safetensors").write_bytes(b"")
    args = (model, "--method", "rtn", "--group-size", "32", "--out", tmp_path / "out")
    assert "--restart" in refusal(quantize(*args))
    assert kept.is_dir()
    done = quantize(*args, "--restart")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "out").is_dir()
    assert not kept.parent.exists()
