import json
from pathlib import Path

import pytest
import torch

from llmopt.errors import CheckpointError, QuantizationError
from llmopt.formats.checkpoint import CheckpointReader, CheckpointWriter
from llmopt.formats.dynamic import DynamicSpec
from llmopt.formats.fp8 import Fp8Spec
from llmopt.formats.quantized import QuantizedWeight, QuantSpec
from llmopt.formats.weights import (
    FormatName,
    choose_format,
    quantization_config,
    quantized_weights,
    scheme,
)

SPECS: list[tuple[FormatName, QuantSpec]] = [
    ("gptq", QuantSpec(3, None)),
    ("gptq", QuantSpec(8, 32, symmetric=False)),
    ("awq", QuantSpec(4, 32)),
    ("awq", QuantSpec(4, 32, symmetric=False)),
    ("compressed-tensors", QuantSpec(4, None)),
    ("compressed-tensors", QuantSpec(2, 32)),
    ("compressed-tensors", QuantSpec(3, 64, symmetric=False)),
    ("compressed-tensors", QuantSpec(8, 32, symmetric=False)),
]


def write(path: Path, name: FormatName, spec: QuantSpec) -> QuantizedWeight:
    """A checkpoint with the quantized layer `a`, its bias, and the dense layer `b`."""
    generator = torch.Generator().manual_seed(0)
    groups = spec.num_groups(64)
    zeros = torch.randint(0, spec.levels, (32, groups), generator=generator, dtype=torch.uint8)
    weight = QuantizedWeight(
        torch.randint(0, spec.levels, (32, 64), generator=generator, dtype=torch.uint8),
        torch.rand(32, groups, generator=generator).half(),
        None if spec.symmetric else zeros,
        None,
        spec,
    )
    weight_format = choose_format(name, spec)
    with CheckpointWriter(path) as writer:
        for tensor_name, tensor in weight_format.pack("a", weight).items():
            writer.add(tensor_name, tensor)
        writer.add("a.bias", torch.zeros(32))
        writer.add("b.weight", torch.zeros(2, 2))
        writer.set_config({"quantization_config": weight_format.config("rtn")})
    return weight


@pytest.mark.parametrize(("name", "spec"), SPECS)
def test_layers_of_every_format_are_found_and_read(tmp_path, name, spec):
    original = write(tmp_path / "out", name, spec)
    reader = CheckpointReader(tmp_path / "out")
    weights = quantized_weights(reader)
    assert weights is not None
    assert "a" in weights
    assert "b" not in weights
    assert torch.equal(weights.weight("a").dequantize(), original.dequantize())
    assert weights.weight("a").spec == spec
    assert weights.num_weights("a") == 32 * 64
    assert {tensor_name: weights.module_of(tensor_name) for tensor_name in reader.names()} == {
        tensor_name: None if tensor_name in ("a.bias", "b.weight") else "a"
        for tensor_name in reader.names()
    }
    assert weights.scheme == scheme(reader, torch.float32) == spec.label("rtn")


def test_a_full_precision_checkpoint_is_named_after_its_dtype(tiny_llama):
    reader = CheckpointReader(tiny_llama)
    assert quantized_weights(reader) is None
    assert scheme(reader, torch.bfloat16) == "bf16"


def test_the_scheme_of_a_foreign_checkpoint_is_named_after_its_format(tmp_path):
    write(tmp_path / "out", "gptq", QuantSpec(4, 32))
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    del config["quantization_config"]["meta"]
    (tmp_path / "out" / "config.json").write_text(json.dumps(config))
    assert scheme(CheckpointReader(tmp_path / "out"), torch.bfloat16) == "gptq-w4g32"


def test_an_unknown_format_is_refused_with_those_that_are_known(tmp_path):
    write(tmp_path / "out", "gptq", QuantSpec(4, 32))
    config = {"quantization_config": {"quant_method": "hqq"}}
    (tmp_path / "out" / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match=r"hqq .*gptq, awq, compressed-tensors"):
        quantized_weights(CheckpointReader(tmp_path / "out"))


@pytest.mark.parametrize(
    ("name", "spec", "words"),
    [
        ("awq", QuantSpec(8, 64), "4-bit weights in groups of one.*gptq, compressed-tensors"),
        ("awq", QuantSpec(4, None), "not weights-w4. .*gptq, compressed-tensors"),
        ("gptq", DynamicSpec(Fp8Spec(), "fp8"), "not weights-fp8. .*hold it: compressed-tensors."),
    ],
)
def test_a_format_that_cannot_hold_the_weights_is_refused_with_those_that_can(name, spec, words):
    with pytest.raises(QuantizationError, match=words):
        choose_format(name, spec)


@pytest.mark.parametrize(
    ("quantization", "words"),
    [
        ([], "quantization_config that is no JSON object: '\\[\\]'"),
        ("gptq", "quantization_config that is no JSON object"),
        ({"quant_method": "gptq", "meta": "x"}, "a meta that is no JSON object: 'x'"),
    ],
)
def test_a_malformed_quantization_config_is_refused(tmp_path, quantization, words):
    write(tmp_path / "out", "gptq", QuantSpec(4, 32))
    config = {"quantization_config": quantization}
    (tmp_path / "out" / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match=words):
        quantized_weights(CheckpointReader(tmp_path / "out"))


def test_a_quantization_config_of_null_is_full_precision():
    assert quantization_config({}) is None
    assert quantization_config({"quantization_config": None}) is None
    assert quantization_config({"quantization_config": {}}) == {}
