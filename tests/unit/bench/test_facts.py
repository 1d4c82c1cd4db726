import json
import shutil
from pathlib import Path

import gguf
import pytest
import torch
from safetensors.torch import load_file, save_file

from llmopt.bench.facts import content_hash, model_facts
from llmopt.errors import CheckpointError
from llmopt.formats.quantized import QuantSpec
from llmopt.models.loader import load_model
from llmopt.quantize.calibration import CalibrationData
from llmopt.quantize.options import Job, QuantizeOptions, RunOptions
from llmopt.quantize.override import parse_override
from llmopt.quantize.pipeline import quantize_checkpoint, quantize_jobs
from llmopt.quantize.scheme import Scheme


@pytest.fixture
def rtn_path(tiny_llama, tmp_path):
    out = tmp_path / "rtn"
    quantize_checkpoint(tiny_llama, out, QuantizeOptions("rtn", QuantSpec(4, 32)))
    return out


def test_full_precision(tiny_llama):
    model = load_model(tiny_llama, dtype="bfloat16")
    facts = model_facts("tiny", tiny_llama, model, note="made up")
    tensors = load_file(tiny_llama / "model.safetensors")
    assert facts.num_parameters == sum(tensor.numel() for tensor in tensors.values())
    assert facts.bits_per_weight == 32  # the file's, whatever dtype it was loaded in
    assert facts.linear_bits_per_weight is None
    assert (facts.scheme, facts.compute_dtype) == ("bf16", "bfloat16")
    assert facts.file_bytes == (tiny_llama / "model.safetensors").stat().st_size
    assert facts.weight_bytes == model.weight_bytes
    assert (facts.name, facts.architecture, facts.note) == ("tiny", "LlamaForCausalLM", "made up")
    assert facts.kernels == model.kernels


def test_quantized_bits_count_scales_zeros_and_group_index(tiny_llama, rtn_path):
    model = load_model(rtn_path, dtype="bfloat16")
    facts = model_facts("tiny", rtn_path, model)
    assert facts.scheme == "rtn-w4g32"
    dense = model_facts("tiny", tiny_llama, load_model(tiny_llama, dtype="float32"))
    assert facts.num_parameters == dense.num_parameters
    # per block: 64x64 q and o, 32x64 k and v, 96x64 gate and up, 64x96 down
    shapes = [(64, 64), (32, 64), (32, 64), (64, 64), (96, 64), (96, 64), (64, 96)]
    bits = sum(o * k * 4 + o * k // 32 * (4 + 16) + 32 * k for o, k in shapes)
    weights = sum(o * k for o, k in shapes)
    assert facts.linear_bits_per_weight == pytest.approx(bits / weights)
    tensors = load_file(rtn_path / "model.safetensors")
    total = 8 * sum(tensor.nbytes for tensor in tensors.values())
    assert facts.bits_per_weight == pytest.approx(total / dense.num_parameters)


@pytest.mark.parametrize(
    ("name", "spec", "bits_of_group", "bits_of_layer"),
    [
        ("gptq", QuantSpec(8, 32, symmetric=False), 16 + 8, 0),
        ("awq", QuantSpec(4, 32), 16 + 4, 0),
        ("compressed-tensors", QuantSpec(4, 32), 16, 2 * 64),
        ("compressed-tensors", QuantSpec(8, 32, symmetric=False), 16 + 8, 2 * 64),
    ],
)
def test_bits_of_every_format(tiny_llama, tmp_path, name, spec, bits_of_group, bits_of_layer):
    options = QuantizeOptions("rtn", spec, format=name)
    summary = quantize_checkpoint(tiny_llama, tmp_path / "out", options)
    model = load_model(tmp_path / "out", dtype="float32")
    facts = model_facts("tiny", tmp_path / "out", model)
    assert facts.scheme == spec.label("rtn")
    assert facts.num_parameters == sum(
        tensor.numel() for tensor in load_file(tiny_llama / "model.safetensors").values()
    )
    shapes = [(64, 64), (32, 64), (32, 64), (64, 64), (96, 64), (96, 64), (64, 96)]
    per_column = 32 if name == "gptq" else 0
    bits = sum(
        o * k * spec.bits + o * k // 32 * bits_of_group + k * per_column + bits_of_layer
        for o, k in shapes
    )
    expected = bits / sum(o * k for o, k in shapes)
    assert facts.linear_bits_per_weight == pytest.approx(expected)
    assert summary.bits_per_weight == pytest.approx(expected)


def test_hash_is_the_same_for_a_copy(tiny_llama, tmp_path):
    shutil.copytree(tiny_llama, tmp_path / "copy")
    assert content_hash(tiny_llama) == content_hash(tmp_path / "copy")


def test_hash_tells_weights_of_one_architecture_apart(tiny_llama, make_tiny_llama):
    assert content_hash(tiny_llama) != content_hash(make_tiny_llama(seed=1))


def test_hash_sees_config_and_metadata(tiny_llama, tmp_path):
    for name in ("config", "metadata"):
        shutil.copytree(tiny_llama, tmp_path / name)
    config = json.loads((tmp_path / "config" / "config.json").read_text())
    (tmp_path / "config" / "config.json").write_text(json.dumps(config | {"rms_norm_eps": 0.5}))
    weights = tmp_path / "metadata" / "model.safetensors"
    save_file(load_file(weights), weights, metadata={"format": "pt", "by": "x"})
    hashes = {content_hash(p) for p in (tiny_llama, tmp_path / "config", tmp_path / "metadata")}
    assert len(hashes) == 3


def test_truncated_file_is_refused(tiny_llama, tmp_path):
    shutil.copytree(tiny_llama, tmp_path / "cut")
    weights = tmp_path / "cut" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(CheckpointError):
        content_hash(tmp_path / "cut")


@pytest.fixture
def gguf_file(gguf_source, tmp_path):
    scheme = Scheme("gguf", mix="q4_0")
    out = tmp_path / "gguf"
    calibration = CalibrationData(torch.arange(64).reshape(2, 32), "numbers", "0" * 64, 0)
    run = RunOptions(calibration)
    quantize_jobs(gguf_source, {out: Job(scheme, "gguf")}, tmp_path / ".resume", run)
    (file,) = out.glob("*.gguf")
    return file


def test_a_gguf_file(gguf_source, gguf_file, tmp_path):
    model = load_model(gguf_file, dtype="float32")
    facts = model_facts("tiny", gguf_file, model)
    dense = model_facts("tiny", gguf_source, load_model(gguf_source, dtype="float32"))
    assert (facts.scheme, facts.compute_dtype) == ("gguf-q4_0", "float32")
    assert facts.num_parameters == dense.num_parameters
    assert facts.linear_bits_per_weight == 4.5  # the embedding has others
    tensors = gguf.GGUFReader(gguf_file).tensors
    num_bits = 8 * sum(int(tensor.n_bytes) for tensor in tensors)
    assert facts.bits_per_weight == pytest.approx(num_bits / dense.num_parameters)
    assert facts.file_bytes == gguf_file.stat().st_size
    copy = Path(shutil.copy(gguf_file, tmp_path / "copy.gguf"))
    assert content_hash(copy) != content_hash(gguf_file)  # its name differs
    other = tmp_path / "other" / gguf_file.name
    other.parent.mkdir()
    other.write_bytes(gguf_file.read_bytes())
    assert content_hash(other) == content_hash(gguf_file)
    changed = bytearray(gguf_file.read_bytes())
    changed[-1] ^= 1
    other.write_bytes(changed)
    assert content_hash(other) != content_hash(gguf_file)


def test_layers_left_in_full_precision_count(tiny_llama, tmp_path):
    skipped = (parse_override("*.down_proj=skip"),)
    options = QuantizeOptions(
        "rtn", QuantSpec(4, 32), format="compressed-tensors", overrides=skipped
    )
    quantize_checkpoint(tiny_llama, tmp_path / "out", options)
    facts = model_facts("tiny", tmp_path / "out", load_model(tmp_path / "out", dtype="float32"))
    quantized = [(64, 64), (32, 64), (32, 64), (64, 64), (96, 64), (96, 64)]
    bits = sum(o * k * 4 + o * k // 32 * 16 + 2 * 64 for o, k in quantized) + 64 * 96 * 32
    weights = sum(o * k for o, k in quantized) + 64 * 96
    assert facts.linear_bits_per_weight == pytest.approx(bits / weights)
