import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from llmopt.errors import QuantizationError, UsageError
from llmopt.formats.checkpoint import CheckpointReader
from llmopt.formats.quantized import QuantSpec
from llmopt.models.decoder import Decoder
from llmopt.models.loader import load_model
from llmopt.quantize.calibration import CalibrationData
from llmopt.quantize.options import QuantizeOptions
from llmopt.quantize.pipeline import quantize_checkpoint
from llmopt.quantize.scheme import UniformMethod as Method
from llmopt_kernels.paged_attention import AttentionMetadata

SPEC = QuantSpec(4, 32, symmetric=False)
NORMS = ("input_layernorm", "post_attention_layernorm")


SHAPES = [
    pytest.param({"num_key_value_heads": 4}, id="mha"),
    pytest.param({"tie_word_embeddings": True, "attention_bias": True}, id="gqa-tied"),
    pytest.param(
        {
            "num_attention_heads": 2,
            "num_key_value_heads": 1,
            "attention_bias": True,
            "mlp_bias": True,
        },
        id="biased",
    ),
]


@pytest.fixture(scope="module")
def calibration(tokens: CalibrationData) -> CalibrationData:
    return tokens


@pytest.fixture(scope="module", params=SHAPES)
def source(request: pytest.FixtureRequest, make_spread_source: Callable[..., Path]) -> Path:
    return make_spread_source(spread=1.0, **request.param)


def hidden_states(model: Decoder, tokens: torch.Tensor) -> torch.Tensor:
    windows, length = tokens.shape
    positions = torch.arange(length).repeat(windows)
    metadata = AttentionMetadata.dense((length,) * windows)
    return model.forward(tokens.flatten(), positions, metadata)


def error_of(checkpoint: Path, source: Path, tokens: torch.Tensor) -> float:
    found, base = (load_model(path, dtype="float32") for path in (checkpoint, source))
    return float((hidden_states(found, tokens) - hidden_states(base, tokens)).square().mean())


@pytest.mark.parametrize("method", ["awq", "awq+gptq"])
def test_checkpoint_is_closer_to_the_source_than_plain_rounding(
    source: Path, calibration: CalibrationData, tmp_path: Path, method: Method
) -> None:
    for name in ("rtn", method):
        options = QuantizeOptions(name, SPEC, calibration, format="awq")
        quantize_checkpoint(source, tmp_path / name, options)
    errors = [error_of(tmp_path / name, source, calibration.tokens) for name in (method, "rtn")]
    assert errors[0] < 0.75 * errors[1]
    record = json.loads((tmp_path / method / "quantization.json").read_text())
    assert record["method"] == method
    assert record["awq"]["num_ratios"] == 20
    assert (record["gptq"] is not None) == (method == "awq+gptq")
    assert record["calibration"]["num_samples"] == 8


def test_only_folded_tensors_differ_from_the_source(
    source: Path, calibration: CalibrationData, tmp_path: Path
) -> None:
    quantize_checkpoint(
        source, tmp_path / "out", QuantizeOptions("awq", SPEC, calibration, format="awq")
    )
    written, original = CheckpointReader(tmp_path / "out"), CheckpointReader(source)
    shared = set(written.names()) & set(original.names())
    changed = {n for n in shared if not torch.equal(written.tensor(n), original.tensor(n))}
    folded = {f"model.layers.{i}.{norm}.weight" for i in (0, 1) for norm in NORMS}
    divided = ("self_attn.v_proj", "mlp.up_proj")
    biases = {f"model.layers.{i}.{name}.bias" for i in (0, 1) for name in divided}
    assert folded <= changed <= folded | biases
    assert biases & set(original.names()) <= changed
    assert all(written.dtype(name) == torch.bfloat16 for name in changed)


def test_modules_come_in_the_order_of_the_blocks_with_losses(
    source: Path, calibration: CalibrationData, tmp_path: Path
) -> None:
    summary = quantize_checkpoint(
        source, tmp_path / "out", QuantizeOptions("awq", QuantSpec(4, 32), calibration)
    )
    names = [record.name for record in summary.modules]
    assert len(names) == 14
    assert names[0] == "model.layers.0.self_attn.q_proj"
    assert names[-1] == "model.layers.1.mlp.down_proj"
    for record in summary.modules:
        assert record.relative_loss is not None
        assert 0 < record.relative_loss < 0.2


def test_same_inputs_give_the_same_bytes(
    source: Path, calibration: CalibrationData, tmp_path: Path
) -> None:
    options = QuantizeOptions("awq", SPEC, calibration, format="awq")
    for name in ("one", "two"):
        quantize_checkpoint(source, tmp_path / name, options)
    files = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("one", "two")]
    assert files[0] == files[1]


def test_calibration_is_required(source: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="awq needs calibration tokens"):
        quantize_checkpoint(source, tmp_path / "out", QuantizeOptions("awq", SPEC))


def test_weight_that_is_not_finite_is_refused_by_name(
    source: Path, calibration: CalibrationData, tmp_path: Path
) -> None:
    broken = shutil.copytree(source, tmp_path / "broken")
    weights = load_file(source / "model.safetensors")
    weights["model.layers.1.mlp.down_proj.weight"][3, 5] = float("nan")
    save_file(weights, broken / "model.safetensors", metadata={"format": "pt"})
    options = QuantizeOptions("awq", SPEC, calibration, format="awq")
    with pytest.raises(QuantizationError, match=r"^model\.layers\.1\.mlp\.down.* holds 1 NaN"):
        quantize_checkpoint(broken, tmp_path / "out", options)


def test_norm_that_is_not_finite_is_refused(
    source: Path, calibration: CalibrationData, tmp_path: Path
) -> None:
    broken = tmp_path / "broken"
    broken.mkdir()
    weights = load_file(source / "model.safetensors")
    weights["model.layers.1.input_layernorm.weight"][3] = float("inf")
    save_file(weights, broken / "model.safetensors", metadata={"format": "pt"})
    (broken / "config.json").write_text((source / "config.json").read_text())
    options = QuantizeOptions("awq", SPEC, calibration, format="awq")
    with pytest.raises(QuantizationError, match=r"the input of model\.layers\.1\.self_attn\.qkv"):
        quantize_checkpoint(broken, tmp_path / "out", options)
    assert not (tmp_path / "out").exists()
