"""Our compressed-tensors checkpoints in the format's own library, and through transformers.

Skipped where the library is absent; it comes with
`pip install torch transformers compressed-tensors` and what constraints.txt names for tests.
"""

import importlib.util
from pathlib import Path

import pytest
import torch

from llmopt.formats.checkpoint import CheckpointReader, CheckpointWriter
from llmopt.formats.compressed_tensors import CompressedTensorsFormat, Layout
from llmopt.formats.quantized import QuantizedWeight, QuantSpec
from llmopt.formats.weights import quantized_weights
from llmopt.models.loader import load_model
from llmopt.quantize.calibration import CalibrationData
from llmopt.quantize.options import Method, QuantizeOptions
from llmopt.quantize.pipeline import quantize_checkpoint
from llmopt.quantize.rtn import quantize_rtn
from llmopt_kernels.paged_attention import AttentionMetadata

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("compressed_tensors") is None,
    reason="not installed: compressed-tensors",
)

TOLERANCE = 4e-3  # relative, for weights rounded to float16

SPECS = [
    QuantSpec(bits, group_size, symmetric)
    for bits in (4, 8)
    for group_size in (32, None)
    for symmetric in (True, False)
]
LAYOUTS: list[tuple[QuantSpec, Layout]] = [
    *((spec, "pack-quantized") for spec in SPECS),
    (QuantSpec(8, None), "int-quantized"),
    (QuantSpec(8, None, symmetric=False), "int-quantized"),
]


def random_weight(spec: QuantSpec) -> QuantizedWeight:
    weight = torch.randn(96, 64, generator=torch.Generator().manual_seed(0))
    return quantize_rtn(weight, spec)


def scheme_of(weight_format: CompressedTensorsFormat) -> object:
    """Parse our config with the library."""
    from compressed_tensors.quantization import QuantizationConfig

    config = QuantizationConfig.model_validate(weight_format.config("rtn"))
    assert config.quantization_status.value == "compressed"
    return config.config_groups["group_0"]


@pytest.mark.parametrize(("spec", "layout"), LAYOUTS)
def test_the_library_decompresses_to_our_weight(spec, layout):
    from compressed_tensors.compressors import BaseCompressor

    weight = random_weight(spec)
    weight_format = CompressedTensorsFormat(spec, layout)
    tensors = {n.removeprefix("m."): t for n, t in weight_format.pack("m", weight).items()}
    tensors["weight_scale"] = tensors["weight_scale"].float()  # else it rounds to float16
    compressor = BaseCompressor.get_value_from_registry(layout)
    theirs = compressor.decompress(tensors, scheme_of(weight_format))["weight"]
    assert torch.equal(theirs, weight.dequantize())


@pytest.mark.parametrize(("spec", "layout"), LAYOUTS)
def test_we_read_what_the_library_compresses(spec, layout):
    """Their codes of our dequantized weight, from our scales and zero points, are ours."""
    from compressed_tensors.compressors import BaseCompressor

    weight = random_weight(spec)
    weight_format = CompressedTensorsFormat(spec, layout)
    state = {"weight": weight.dequantize(), "weight_scale": weight.scales.float()}
    if weight.zeros is not None:
        state["weight_zero_point"] = (weight.zeros.int() - spec.midpoint).to(torch.int8)
    compressor = BaseCompressor.get_value_from_registry(layout)
    tensors = compressor.compress(state, scheme_of(weight_format))
    ours = weight_format.pack("m", weight)
    assert {f"m.{name}" for name in tensors} == set(ours)
    for name, tensor in tensors.items():
        assert torch.equal(tensor.float(), ours[f"m.{name}"].float())
    read = weight_format.unpack("m", {f"m.{n}": t for n, t in tensors.items()}.__getitem__)
    assert torch.equal(read.dequantize(), weight.dequantize())


@torch.inference_mode()
def assert_transformers_reads_alike(path: Path) -> None:
    """Every weight, bit for bit after the rounding to the scales' float16 that the library does,
    and the logits.
    """
    from transformers import AutoModelForCausalLM, CompressedTensorsConfig

    model = AutoModelForCausalLM.from_pretrained(
        path,
        dtype=torch.float32,
        quantization_config=CompressedTensorsConfig(dequantize=True),
    )
    weights = quantized_weights(CheckpointReader(path))
    assert weights is not None
    modules = [name for name, _ in model.named_modules() if name in weights]
    assert len(modules) == 7 * model.config.num_hidden_layers
    for name in modules:
        rounded = weights.weight(name).dequantize(torch.float16).float()
        assert torch.equal(model.get_submodule(name).weight, rounded), name
    ids = torch.arange(60)
    ours = load_model(path, dtype="float32")
    hidden = ours.forward(ids, torch.arange(60), AttentionMetadata.dense([60]))
    theirs = model(ids[None]).logits[0]
    expected = ours.compute_logits(hidden)
    assert (theirs - expected).norm() / expected.norm() < TOLERANCE


def calibration_of(method: Method) -> CalibrationData | None:
    tokens = torch.randint(0, 128, (4, 64), generator=torch.Generator().manual_seed(0))
    return CalibrationData(tokens, "random", "", 0) if method == "gptq" else None


@pytest.mark.parametrize("method", ["rtn", "gptq"])
@pytest.mark.parametrize("spec", SPECS)
def test_transformers_reads_our_checkpoint(tiny_llama, tmp_path, method, spec):
    options = QuantizeOptions(method, spec, calibration_of(method), format="compressed-tensors")
    quantize_checkpoint(tiny_llama, tmp_path / "out", options)
    assert_transformers_reads_alike(tmp_path / "out")


@pytest.mark.parametrize("symmetric", [True, False])
def test_transformers_reads_our_bytes(tiny_llama, tmp_path, symmetric):
    weight_format = CompressedTensorsFormat(QuantSpec(8, None, symmetric), "int-quantized")
    reader = CheckpointReader(tiny_llama)
    with CheckpointWriter(tmp_path / "out") as writer:
        for name in reader.names():
            module, tensor = name.removesuffix(".weight"), reader.tensor(name)
            if not module.endswith("_proj"):
                writer.add(name, tensor)
                continue
            weight = quantize_rtn(tensor, weight_format.spec)
            for packed_name, packed in weight_format.pack(module, weight).items():
                writer.add(packed_name, packed)
        config = weight_format.config("rtn")
        writer.set_config({**reader.config, "quantization_config": config})
    assert_transformers_reads_alike(tmp_path / "out")
