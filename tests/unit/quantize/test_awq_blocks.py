from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from llmopt.formats.quantized import QuantSpec
from llmopt.layers.norm import RMSNorm
from llmopt.models.decoder import Decoder, DecoderBlock
from llmopt.models.loader import load_model
from llmopt.quantize.awq import mean_magnitudes
from llmopt.quantize.awq_blocks import choose_sample, round_clipped
from llmopt.quantize.awq_scaling import (
    ParentInputs,
    ScaleSearch,
    Sequences,
    dense,
    scale_attention,
    scale_mlp,
)
from llmopt.quantize.gptq import accumulate_hessian
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


def spread(model: Decoder) -> Decoder:
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


def sequences(model: Decoder, windows: int, length: int) -> Sequences:
    rotary = model.rotary(torch.arange(length).repeat(windows))
    return Sequences(rotary, AttentionMetadata.dense((length,) * windows))


def scale_block(block: DecoderBlock, model: Decoder, hidden: torch.Tensor) -> None:
    search = ScaleSearch(SPEC, 20)
    dtypes = {"norm_dtype": torch.bfloat16, "bias_dtype": torch.bfloat16}
    x = block.input_norm(hidden)
    seqs = sequences(model, 8, 64)
    scale_attention(block, ParentInputs(x, mean_magnitudes(x)), seqs, search, **dtypes)
    x = block.post_norm(hidden)
    scale_mlp(block, ParentInputs(x, mean_magnitudes(x)), search, **dtypes)


def test_folding_keeps_the_function_and_moves_the_weights(source: Path) -> None:
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
