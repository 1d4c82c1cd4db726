import pytest
import torch

from llmopt.errors import QuantizationError
from llmopt.formats.checkpoint import CheckpointReader
from llmopt.models.decoder import DecoderBlock
from llmopt.models.loader import ModelLoader
from llmopt.quantize.folding import dense
from llmopt.quantize.smoothquant import (
    SmoothQuantOptions,
    smooth_attention,
    smooth_mlp,
    smooth_scales,
)
from llmopt_kernels.paged_attention import AttentionMetadata

TOKENS = 24


@pytest.fixture
def loader(make_tiny_llama) -> ModelLoader:
    return ModelLoader(CheckpointReader(make_tiny_llama(attention_bias=True)), dtype="float32")


def run(loader: ModelLoader, block: DecoderBlock, hidden: torch.Tensor) -> torch.Tensor:
    rotary = loader.rotary(torch.arange(TOKENS))
    return block.forward(hidden, rotary, AttentionMetadata.dense([TOKENS]), None)


class Recorder:
    """Stands where a linear layer was and remembers the largest inputs of each channel."""

    kernel = "none"
    weight_bytes = 0

    def __init__(self, linear) -> None:
        self.linear = linear
        self.in_features, self.out_features = linear.in_features, linear.out_features

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        self.largest = x.abs().amax(dim=0)
        return self.linear(x)


def largest_inputs(loader: ModelLoader, hidden: torch.Tensor) -> list[torch.Tensor]:
    block = loader.block(0)
    attention, mlp = block.attention, block.mlp
    attention.qkv, attention.output = Recorder(attention.qkv), Recorder(attention.output)
    mlp.gate_up, mlp.down = Recorder(mlp.gate_up), Recorder(mlp.down)
    run(loader, block, hidden)
    return [linear.largest for linear in block.linears]


def test_scales_are_the_papers():
    inputs, weights = torch.tensor([16.0, 1.0, 0.0, 4.0]), torch.tensor([1.0, 4.0, 1.0, 4.0])
    half = smooth_scales(inputs, weights, 0.5)
    assert half.tolist() == pytest.approx([4.0, 0.5, 1.0, 1.0])  # sqrt(x) / sqrt(w), and 1
    assert smooth_scales(inputs, weights, 1.0).tolist() == pytest.approx([16.0, 1.0, 1.0, 4.0])
    balanced = torch.stack([inputs / half, weights * half])[:, :2]
    assert torch.allclose(balanced[0], balanced[1])  # alpha 0.5 meets in the middle


@pytest.mark.parametrize("strengths", [(-0.1, 0.5), (0.5, 1.5)])
def test_a_strength_beyond_its_range_is_refused(strengths):
    with pytest.raises(QuantizationError, match="from 0 to 1"):
        SmoothQuantOptions(*strengths)


def test_a_smoothed_block_computes_what_it_did_and_its_outliers_are_smaller(loader):
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(TOKENS, 64, generator=generator)
    hidden[:, 3] *= 50  # the norm passes it on as an outlier
    original, block = loader.block(0), loader.block(0)
    o_before, down_before = (
        dense(linear).weight for linear in (original.attention.output, original.mlp.down)
    )
    qkv, output, gate_up, down = largest_inputs(loader, hidden)
    options = SmoothQuantOptions(0.8, 0.5)
    dtypes = {"norm_dtype": torch.float32, "bias_dtype": torch.float32}
    smooth_attention(block, qkv, output, options, **dtypes)
    smooth_mlp(block, gate_up, down, options, **dtypes)
    expected = run(loader, original, hidden)
    assert torch.allclose(run(loader, block, hidden), expected, rtol=1e-4, atol=1e-4)

    def spread(values: torch.Tensor) -> float:
        return float(values.max() / values.median())

    before, after = original.input_norm(hidden), block.input_norm(hidden)
    assert spread(after.abs().amax(0)) < spread(before.abs().amax(0)) / 2
    for smoothed, before in ((block.mlp.down, down_before), (block.attention.output, o_before)):
        assert not torch.equal(dense(smoothed).weight, before)
