import copy
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from llmopt.errors import QuantizationError
from llmopt.formats.checkpoint import CheckpointReader
from llmopt.formats.quantized import QuantSpec
from llmopt.layers.linear import DenseLinear
from llmopt.layers.norm import RMSNorm
from llmopt.models.llama import DecoderBlock, LlamaModel
from llmopt.models.loader import load_model
from llmopt.quantize.awq import AWQOptions, mean_magnitudes
from llmopt.quantize.awq_blocks import choose_sample, round_clipped, scale_and_quantize_blocks
from llmopt.quantize.awq_scaling import (
    ParentInputs,
    ScaleSearch,
    Sequences,
    dense,
    scale_attention,
    scale_mlp,
)
from llmopt.quantize.calibration import CalibrationData
from llmopt.quantize.gptq import accumulate_hessian
from llmopt.quantize.layout import block_modules
from llmopt.quantize.options import Method, QuantizedModule, QuantizeOptions, ReplacedTensor
from llmopt.quantize.rtn import quantize_rtn
from llmopt_kernels.paged_attention import AttentionMetadata

SPEC = QuantSpec(4, 32, symmetric=False)
SHAPES = [
    pytest.param({"num_key_value_heads": 4}, id="mha"),
    pytest.param({"num_key_value_heads": 2, "tie_word_embeddings": True}, id="gqa-tied"),
    pytest.param({"num_key_value_heads": 1, "attention_bias": True, "mlp_bias": True}, id="biased"),
]


@pytest.fixture(scope="module", params=SHAPES)
def source(request: pytest.FixtureRequest, make_tiny_llama: Callable[..., Path]) -> Path:
    return make_tiny_llama(**request.param)


@pytest.fixture(scope="module")
def calibration() -> CalibrationData:
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(0, 128, (8, 64), generator=generator)
    return CalibrationData(tokens, "random", "0" * 64, 0)


def spread(model: LlamaModel) -> LlamaModel:
    """Make the model's channels differ in size, and its biases differ from 0."""
    generator = torch.Generator().manual_seed(7)
    for block in model.blocks:
        for name in ("input_norm", "post_norm"):
            norm: RMSNorm = getattr(block, name)
            sizes = torch.randn(norm.weight.shape, generator=generator).exp().bfloat16().float()
            setattr(block, name, RMSNorm(sizes, norm.eps))
        for linear in block.linears:
            if dense(linear).bias is not None:
                bias = torch.randn(linear.out_features, generator=generator).bfloat16().float()
                dense(linear).bias = bias
    return model


def sequences(model: LlamaModel, windows: int, length: int) -> Sequences:
    rotary = model.rotary(torch.arange(length).repeat(windows))
    return Sequences(rotary, AttentionMetadata.dense((length,) * windows))


def hidden_states(model: LlamaModel, tokens: torch.Tensor) -> torch.Tensor:
    windows, length = tokens.shape
    positions = torch.arange(length).repeat(windows)
    metadata = AttentionMetadata.dense((length,) * windows)
    return model.forward(tokens.flatten(), positions, metadata)


def quantized_copy(
    model: LlamaModel,
    calibration: CalibrationData,
    *,
    num_ratios: int = 20,
    spec: QuantSpec = SPEC,
    method: Method = "awq",
) -> tuple[LlamaModel, list[QuantizedModule], dict[str, torch.Tensor]]:
    """Quantize, and put together the model that the finished parts describe."""
    config, result = model.config, copy.deepcopy(model)
    weights: dict[str, torch.Tensor] = {}
    replaced: dict[str, torch.Tensor] = {}
    modules: list[QuantizedModule] = []
    options = QuantizeOptions(method, spec, calibration, awq=AWQOptions(num_ratios=num_ratios))
    for item in scale_and_quantize_blocks(model, calibration, options, lambda name: torch.bfloat16):
        if isinstance(item, ReplacedTensor):
            replaced[item.name] = item.tensor
        else:
            modules.append(item)
            weights[item.record.name] = item.weight.dequantize()
    for index, block in enumerate(result.blocks):
        prefix = f"model.layers.{index}"
        for norm, name in (("input_norm", "input"), ("post_norm", "post_attention")):
            weight = replaced[f"{prefix}.{name}_layernorm.weight"].float()
            setattr(block, norm, RMSNorm(weight, config.rms_norm_eps))
        for parts, linear in zip(block_modules(config, index), block.linears, strict=True):
            layer = dense(linear)
            layer.weight = torch.cat([weights[name] for name in parts.parts])
            bias = replaced.get(f"{parts.parts[-1]}.bias")
            if bias is not None and layer.bias is not None:
                layer.bias[-parts.part_rows[-1] :] = bias.float()
    return result, modules, replaced


def scale_block(block: DecoderBlock, model: LlamaModel, hidden: torch.Tensor) -> None:
    search = ScaleSearch(SPEC, 20)
    dtypes = {"norm_dtype": torch.bfloat16, "bias_dtype": torch.bfloat16}
    x = block.input_norm(hidden)
    seqs = sequences(model, 8, 64)
    scale_attention(block, ParentInputs(x, mean_magnitudes(x)), seqs, search, **dtypes)
    x = block.post_norm(hidden)
    scale_mlp(block, ParentInputs(x, mean_magnitudes(x)), search, **dtypes)


def test_folding_keeps_the_function_and_moves_the_weights(
    source: Path, calibration: CalibrationData
) -> None:
    model = spread(load_model(source, dtype="float32"))
    hidden = torch.randn(8 * 64, 64, generator=torch.Generator().manual_seed(1))
    block = model.blocks[0]
    before = [dense(linear).weight.clone() for linear in block.linears]
    seqs = sequences(model, 8, 64)
    expected = block.forward(hidden, seqs.rotary, seqs.metadata, None)
    scale_block(block, model, hidden)
    found = block.forward(hidden, seqs.rotary, seqs.metadata, None)
    has_bias = dense(block.attention.qkv).bias is not None
    tolerance = 4e-3 if has_bias else 2e-5  # divided biases are rounded to bf16, nothing else is
    assert (found - expected).abs().max() < tolerance * expected.abs().max()
    for old, linear in zip(before, block.linears, strict=True):
        assert not torch.allclose(old, dense(linear).weight, rtol=0.05)


@pytest.mark.parametrize("method", ["awq", "awq+gptq"])
def test_scaled_model_is_closer_than_plain_rounding(
    source: Path, calibration: CalibrationData, method: Method
) -> None:
    model = spread(load_model(source, dtype="float32"))
    expected = hidden_states(model, calibration.tokens)
    rounded = copy.deepcopy(model)
    for block in rounded.blocks:
        for linear in block.linears:
            dense(linear).weight = quantize_rtn(dense(linear).weight, SPEC).dequantize()
    plain = (hidden_states(rounded, calibration.tokens) - expected).square().mean()
    scaled, _, _ = quantized_copy(model, calibration, method=method)
    error = (hidden_states(scaled, calibration.tokens) - expected).square().mean()
    assert error < 0.75 * plain


def test_parts_come_in_the_order_of_the_blocks_with_losses(
    source: Path, calibration: CalibrationData
) -> None:
    model = spread(load_model(source, dtype="float32"))
    biased = dense(model.blocks[0].attention.qkv).bias is not None
    _, modules, replaced = quantized_copy(model, calibration, num_ratios=4)
    names = [module.record.name for module in modules]
    assert len(names) == 14
    assert names[0] == "model.layers.0.self_attn.q_proj"
    assert names[-1] == "model.layers.1.mlp.down_proj"
    assert [module.block for module in modules] == [0] * 7 + [1] * 7
    assert all(tensor.dtype == torch.bfloat16 for tensor in replaced.values())
    assert len(replaced) == (8 if biased else 4)
    for module in modules:
        assert module.record.relative_loss is not None
        assert 0 < module.record.relative_loss < 0.2


def test_replaced_tensors_exist_in_the_source(source: Path, calibration: CalibrationData) -> None:
    reader = CheckpointReader(source)
    model = load_model(source, dtype="float32")
    options = QuantizeOptions("awq", SPEC, calibration, awq=AWQOptions(num_ratios=2))
    for item in scale_and_quantize_blocks(model, calibration, options, reader.dtype):
        if isinstance(item, ReplacedTensor):
            assert reader.shape(item.name) == tuple(item.tensor.shape)
            assert reader.dtype(item.name) == item.tensor.dtype


def test_same_calibration_gives_the_same_codes(
    tiny_llama: Path, calibration: CalibrationData
) -> None:
    def codes() -> list[torch.Tensor]:
        model = load_model(tiny_llama, dtype="float32")
        modules = quantized_copy(model, calibration, num_ratios=4)[1]
        return [module.weight.codes for module in modules]

    assert all(torch.equal(a, b) for a, b in zip(codes(), codes(), strict=True))


def test_symmetric_weights_are_scaled_too(tiny_llama: Path, calibration: CalibrationData) -> None:
    spec = QuantSpec(4, 32)
    modules = quantized_copy(
        load_model(tiny_llama, dtype="float32"), calibration, num_ratios=4, spec=spec
    )[1]
    assert all(module.weight.zeros is None for module in modules)


def test_clipping_leaves_the_first_rows_on_their_min_max_grid() -> None:
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(12, 64, generator=generator)
    weight[:, 9] = 6.0
    hessian = accumulate_hessian(torch.randn(300, 64, generator=generator))
    plain = quantize_rtn(weight, SPEC)
    found = round_clipped(weight, hessian, SPEC, clipped_from=5).weight
    assert torch.equal(found.codes[:5], plain.codes[:5])
    assert torch.equal(found.scales[:5], plain.scales[:5])
    assert found.scales[5:, 0].float().mean() < 0.99 * plain.scales[5:, 0].float().mean()


def test_clipping_lowers_the_loss_of_the_layers() -> None:
    generator = torch.Generator().manual_seed(3)
    weight = torch.randn(32, 64, generator=generator)
    hessian = accumulate_hessian(torch.randn(300, 64, generator=generator))
    clipped = round_clipped(weight, hessian, SPEC, clipped_from=0)
    assert clipped.loss < 0.97 * round_clipped(weight, hessian, SPEC, clipped_from=32).loss


@pytest.mark.parametrize(
    ("windows", "length", "tokens", "expected"),
    [(32, 512, 2048, [0, 8, 16, 24]), (4, 512, 100, [0]), (3, 64, 10**6, [0, 1, 2])],
)
def test_sample_is_whole_windows_spread_over_the_text(
    windows: int, length: int, tokens: int, expected: list[int]
) -> None:
    assert choose_sample(windows, length, tokens) == expected


def test_weight_that_is_not_finite_is_refused_by_name(
    tiny_llama: Path, calibration: CalibrationData
) -> None:
    model = load_model(tiny_llama, dtype="float32")
    down = model.blocks[1].mlp.down
    assert isinstance(down, DenseLinear)
    down.weight[3, 5] = float("nan")
    with pytest.raises(QuantizationError, match=r"^model\.layers\.1\.mlp\.down holds 1 NaN"):
        quantized_copy(model, calibration, num_ratios=2)
