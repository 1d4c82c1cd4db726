"""Our compressed-tensors checkpoints in the format's own library, and through transformers.

Skipped where the library is absent; it comes with
`pip install torch transformers compressed-tensors` and what constraints.txt names for tests.
"""

import importlib.util
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
import torch

from llmopt.formats.checkpoint import CheckpointReader, CheckpointWriter
from llmopt.formats.compressed_tensors import CompressedTensorsFormat
from llmopt.formats.compressed_tensors_config import CompressedScheme
from llmopt.formats.dynamic import DynamicSpec, DynamicWeight, WeightSpec
from llmopt.formats.fp8 import Fp8Spec, Fp8Weight
from llmopt.formats.overrides import Layers
from llmopt.formats.quantized import QuantizedWeight, QuantSpec
from llmopt.formats.weights import choose_format, quantized_weights
from llmopt.models.loader import load_model
from llmopt.quantize.calibration import CalibrationData
from llmopt.quantize.fp8 import quantize_fp8
from llmopt.quantize.options import QuantizeOptions
from llmopt.quantize.pipeline import quantize_checkpoint
from llmopt.quantize.rtn import quantize_rtn
from llmopt_kernels.paged_attention import AttentionMetadata

pytestmark = [
    pytest.mark.skipif(
        importlib.util.find_spec("compressed_tensors") is None,
        reason="not installed: compressed-tensors",
    ),
    pytest.mark.filterwarnings("ignore:You passed `quantization_config`"),
]

TOLERANCE = 4e-3  # relative, for weights rounded to float16
# Relative, where inputs are rounded: the library's int8 scales are 2 / 255 of the largest, ours
# 1 / 127; with its `dequantize` it does not round them at all.
INPUT_TOLERANCE = {"int8": 6e-2, "fp8": 3e-2}
NO_ROUNDING_TOLERANCE = {"int8": 6e-2, "fp8": 2e-1}

ROWS = QuantSpec(8, None)
W8A8, FP8 = DynamicSpec(ROWS, "int8"), DynamicSpec(Fp8Spec(), "fp8")
SPECS = [
    QuantSpec(bits, group_size, symmetric)
    for bits in (2, 3, 4, 8)
    for group_size in (32, None)
    for symmetric in (True, False)
]
SCHEMES = [
    *(CompressedScheme(spec, "pack-quantized") for spec in SPECS),
    CompressedScheme(ROWS, "int-quantized"),
    CompressedScheme(QuantSpec(8, None, symmetric=False), "int-quantized"),
    CompressedScheme(W8A8, "int-quantized"),
    CompressedScheme(DynamicSpec(QuantSpec(4, 32), "int8"), "int-quantized"),
    CompressedScheme(FP8, "float-quantized"),
    CompressedScheme(Fp8Spec(), "naive-quantized"),
    CompressedScheme(DynamicSpec(Fp8Spec(per_row=False), "fp8"), "float-quantized"),
]
Stored = QuantizedWeight | Fp8Weight | DynamicWeight


def quantize(weight: torch.Tensor, spec: WeightSpec) -> Stored:
    if isinstance(spec, DynamicSpec):
        inner = quantize(weight, spec.weight)
        assert not isinstance(inner, DynamicWeight)
        return DynamicWeight(inner, spec.activations)
    if isinstance(spec, QuantSpec):
        return quantize_rtn(weight, spec)
    rows = quantize_fp8(weight)
    return rows if spec.per_row else Fp8Weight(rows.values, torch.tensor([[0.125]]), spec)


def random_matrix() -> torch.Tensor:
    return torch.randn(96, 64, generator=torch.Generator().manual_seed(0))


def scheme_of(weight_format: CompressedTensorsFormat) -> object:
    """Parse our config with the library."""
    from compressed_tensors.quantization import QuantizationConfig

    config = QuantizationConfig.model_validate(weight_format.config("rtn"))
    assert config.quantization_status.value == "compressed"
    return config.config_groups["group_0"]


@pytest.mark.parametrize("scheme", SCHEMES, ids=str)
def test_the_library_decompresses_to_our_weight(scheme):
    from compressed_tensors.compressors import BaseCompressor

    weight = quantize(random_matrix(), scheme.spec)
    weight_format = CompressedTensorsFormat(scheme)
    tensors = {n.removeprefix("m."): t for n, t in weight_format.pack("m", weight).items()}
    tensors["weight_scale"] = tensors["weight_scale"].float()  # else it rounds to float16
    compressor = BaseCompressor.get_value_from_registry(scheme.layout)
    theirs = compressor.decompress(tensors, scheme_of(weight_format))["weight"]
    assert torch.equal(theirs, weight.dequantize())


@pytest.mark.parametrize("scheme", SCHEMES, ids=str)
def test_we_read_what_the_library_compresses(scheme):
    """Their codes of our dequantized weight, from our scales and zero points, are ours."""
    from compressed_tensors.compressors import BaseCompressor

    weight = quantize(random_matrix(), scheme.spec)
    stored = weight.weight if isinstance(weight, DynamicWeight) else weight
    weight_format = CompressedTensorsFormat(scheme)
    state = {"weight": weight.dequantize(), "weight_scale": stored.scales.float()}
    if isinstance(stored, QuantizedWeight) and stored.zeros is not None:
        midpoint = stored.spec.midpoint
        state["weight_zero_point"] = (stored.zeros.int() - midpoint).to(torch.int8)
    compressor = BaseCompressor.get_value_from_registry(scheme.layout)
    tensors = compressor.compress(state, scheme_of(weight_format))
    ours = weight_format.pack("m", weight)
    assert {f"m.{name}" for name in tensors} == set(ours)
    for name, tensor in tensors.items():
        assert torch.equal(tensor.float().flatten(), ours[f"m.{name}"].float().flatten())
    read = weight_format.unpack("m", {f"m.{n}": t for n, t in tensors.items()}.__getitem__)
    assert torch.equal(read.dequantize(), weight.dequantize())


@pytest.mark.parametrize("scale_dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_fp8_weights_are_those_of_the_preset(scale_dtype):
    """Scales and values of FP8_DYNAMIC from the library's own formulas, bit for bit."""
    from compressed_tensors.quantization import preset_name_to_scheme
    from compressed_tensors.quantization.lifecycle.forward import quantize as their_quantize
    from compressed_tensors.quantization.utils import calculate_qparams

    arguments = preset_name_to_scheme("FP8_DYNAMIC", ["Linear"]).weights
    weight = random_matrix()
    low, high = weight.amin(1, keepdim=True), weight.amax(1, keepdim=True)
    scales = calculate_qparams(low, high, arguments)[0].to(scale_dtype)
    values = their_quantize(weight, scales, None, arguments, dtype=torch.float8_e4m3fn)
    ours = quantize_fp8(weight, scale_dtype=scale_dtype)
    assert torch.equal(ours.scales, scales)
    assert torch.equal(ours.values.float(), values.float())


def test_int8_rows_are_those_of_the_preset():
    """Their scale is ours before it is rounded, and from ours they choose our codes."""
    from compressed_tensors.quantization import preset_name_to_scheme
    from compressed_tensors.quantization.lifecycle.forward import quantize as their_quantize
    from compressed_tensors.quantization.utils import calculate_qparams

    arguments = preset_name_to_scheme("W8A8", ["Linear"]).weights
    weight = random_matrix()
    ours = quantize_rtn(weight, ROWS)
    low, high = weight.amin(1, keepdim=True), weight.amax(1, keepdim=True)
    scales = calculate_qparams(low, high, arguments)[0]
    assert torch.allclose(ours.scales.float(), scales, rtol=2**-8)
    codes = their_quantize(weight, ours.scales.float(), None, arguments, dtype=torch.int8)
    assert torch.equal(codes.int(), ours.codes.int() - 128)


def preset_fields(arguments: object) -> dict[str, object]:
    return {} if arguments is None else arguments.model_dump()  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("spec", "preset"),
    [(W8A8, "W8A8"), (FP8, "FP8_DYNAMIC"), (QuantSpec(4, 128), "W4A16"), (FP8, "fp8_dynamic")],
)
def test_our_config_says_what_the_preset_says(spec, preset):
    from compressed_tensors.quantization import preset_name_to_scheme

    weight_format = CompressedTensorsFormat.for_spec(spec)
    assert weight_format is not None
    ours, theirs = scheme_of(weight_format), preset_name_to_scheme(preset, ["Linear"])
    for part in ("weights", "input_activations"):
        assert preset_fields(getattr(ours, part)) == preset_fields(getattr(theirs, part))


def write_quantized(source: Path, out: Path, default: WeightSpec, layers: Layers) -> None:
    """Round the projections (and the head, where it is named) of a checkpoint to nearest."""
    weight_format = choose_format("compressed-tensors", default, layers)
    reader = CheckpointReader(source)
    with CheckpointWriter(out) as writer:
        for name in reader.names():
            module, tensor = name.removesuffix(".weight"), reader.tensor(name)
            spec = layers.get(module, default if module.endswith("_proj") else None)
            if spec is None:
                writer.add(name, tensor)
                continue
            for packed_name, packed in weight_format.pack(module, quantize(tensor, spec)).items():
                writer.add(packed_name, packed)
        config = weight_format.config("rtn")
        writer.set_config({**reader.config, "quantization_config": config})


@torch.inference_mode()
def logits(path: Path, ids: torch.Tensor) -> torch.Tensor:
    model = load_model(path, dtype="float32")
    metadata = AttentionMetadata.dense([len(ids)])
    return model.compute_logits(model.forward(ids, torch.arange(len(ids)), metadata))


@torch.inference_mode()
def assert_transformers_reads_alike(path: Path, tolerance: float, *, dequantize: bool) -> None:
    """Every weight, bit for bit after the rounding to the scales' own dtype that the library does,
    and the logits.
    """
    from transformers import AutoModelForCausalLM, CompressedTensorsConfig

    model = AutoModelForCausalLM.from_pretrained(
        path,
        dtype=torch.float32,
        quantization_config=CompressedTensorsConfig(dequantize=dequantize),
    )
    ids = torch.arange(60)
    theirs = model(ids[None]).logits[0]  # decompresses, unless that was done at loading
    reader = CheckpointReader(path)
    weights = quantized_weights(reader)
    assert weights is not None
    modules = [name for name, _ in model.named_modules() if name in weights]
    assert len(modules) >= 7 * model.config.num_hidden_layers - 1
    for name in modules:
        dtype = reader.dtype(f"{name}.weight_scale") if dequantize else torch.float32
        rounded = weights.weight(name).dequantize(dtype).float()
        assert torch.equal(model.get_submodule(name).weight, rounded), name
    ours = logits(path, ids)
    assert (theirs - ours).norm() / ours.norm() < tolerance


def calibration_of(method: str) -> CalibrationData | None:
    tokens = torch.randint(0, 128, (4, 64), generator=torch.Generator().manual_seed(0))
    return CalibrationData(tokens, "random", "", 0) if method == "gptq" else None


@pytest.mark.parametrize("method", ["rtn", "gptq"])
@pytest.mark.parametrize("spec", [spec for spec in SPECS if spec.bits > 2], ids=str)
def test_transformers_reads_our_checkpoint(tiny_llama, tmp_path, method, spec):
    options = QuantizeOptions(method, spec, calibration_of(method), format="compressed-tensors")
    quantize_checkpoint(tiny_llama, tmp_path / "out", options)
    assert_transformers_reads_alike(tmp_path / "out", TOLERANCE, dequantize=True)


@pytest.mark.parametrize("dequantize", [True, False])
@pytest.mark.parametrize("spec", [W8A8, FP8, Fp8Spec()], ids=str)
def test_transformers_reads_our_8_bits(tiny_llama, tmp_path, spec, dequantize):
    write_quantized(tiny_llama, tmp_path / "out", spec, {})
    tolerance = TOLERANCE
    if isinstance(spec, DynamicSpec):
        tolerances = NO_ROUNDING_TOLERANCE if dequantize else INPUT_TOLERANCE
        tolerance = tolerances[spec.activations]
    assert_transformers_reads_alike(tmp_path / "out", tolerance, dequantize=dequantize)


LAST = "model.layers.1."
QKV = [f"{LAST}self_attn.{name}_proj" for name in "qkv"]
MIXES: Mapping[str, tuple[WeightSpec, Layers]] = {
    "bits": (QuantSpec(4, 32), {f"{LAST}mlp.down_proj": QuantSpec(8, 32)}),
    "skipped": (QuantSpec(4, 32), {f"{LAST}mlp.down_proj": None}),
    "layouts": (QuantSpec(4, 32), dict.fromkeys(QKV, W8A8)),
    "head": (FP8, {"lm_head": QuantSpec(8, None), f"{LAST}mlp.down_proj": Fp8Spec()}),
}


@pytest.mark.parametrize("mix", MIXES)
def test_transformers_reads_our_mixtures(make_tiny_llama: Callable[..., Path], tmp_path, mix):
    default, layers = MIXES[mix]
    source = make_tiny_llama(tie_word_embeddings=False)
    write_quantized(source, tmp_path / "out", default, layers)
    assert_transformers_reads_alike(tmp_path / "out", 3e-2, dequantize=False)
