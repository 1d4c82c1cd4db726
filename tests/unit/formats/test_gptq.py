import pytest
import torch

from llmopt.errors import CheckpointError
from llmopt.formats.gptq import pack_gptq, parse_quantization_config, unpack_gptq
from llmopt.formats.packing import pack_words
from llmopt.formats.quantized import QuantizedWeight, QuantSpec
from llmopt.formats.scales import round_scales


def weight(bits: int, group_size: int | None, seed: int = 0) -> QuantizedWeight:
    spec = QuantSpec(bits, group_size)
    generator = torch.Generator().manual_seed(seed)
    codes = torch.randint(0, spec.levels, (32, 64), generator=generator, dtype=torch.uint8)
    scales = torch.rand(32, spec.num_groups(64), generator=generator) + 0.1
    return QuantizedWeight(codes, round_scales(scales), None, None, spec)


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("group_size", [32, 64, None])
def test_written_layers_have_the_standard_shapes_and_read_back_equal(bits, group_size):
    original = weight(bits, group_size)
    tensors = pack_gptq("layer", original)
    groups = original.scales.shape[1]
    assert {name: tuple(t.shape) for name, t in tensors.items()} == {
        "layer.qweight": (64 * bits // 32, 32),
        "layer.qzeros": (groups, 32 * bits // 32),
        "layer.scales": (groups, 32),
        "layer.g_idx": (64,),
    }
    read = unpack_gptq("layer", tensors.__getitem__, original.spec, "gptq")
    assert torch.equal(read.dequantize(), original.dequantize())
    assert read.g_idx is None


def test_the_standard_formula_of_a_reader_gives_the_weight():
    """AutoGPTQ's definition, written out independently: W[k, o] = scale * (code - (zero + 1))."""
    original = weight(4, 32)
    tensors = pack_gptq("layer", original)
    dense = torch.zeros(64, 32)
    for k in range(64):
        g = tensors["layer.g_idx"][k].item()
        for o in range(32):
            code = (tensors["layer.qweight"][k // 8, o].item() >> (4 * (k % 8))) & 15
            zero = (tensors["layer.qzeros"][g, o // 8].item() >> (4 * (o % 8))) & 15
            dense[k, o] = tensors["layer.scales"][g, o].float() * (code - (zero + 1))
    assert torch.equal(dense.T, original.dequantize())


def test_version_2_zero_points_are_recognized_from_the_data():
    original = weight(4, 32)
    tensors = pack_gptq("layer", original)
    eights = torch.full((32, 2), 8, dtype=torch.uint8)
    tensors["layer.qzeros"] = pack_words(eights, 4).T.contiguous()
    read = unpack_gptq("layer", tensors.__getitem__, original.spec, "gptq")
    assert torch.equal(read.dequantize(), original.dequantize())


@pytest.mark.parametrize("checkpoint_format", ["gptq", "gptq_v2"])
def test_asymmetric_zero_points_follow_the_declared_version(checkpoint_format):
    symmetric = weight(4, 32)
    zeros = torch.randint(1, 16, (32, 2), dtype=torch.uint8)
    stored = zeros - 1 if checkpoint_format == "gptq" else zeros
    tensors = pack_gptq("layer", symmetric)
    tensors["layer.qzeros"] = pack_words(stored, 4).T.contiguous()
    spec = QuantSpec(4, 32, symmetric=False)
    read = unpack_gptq("layer", tensors.__getitem__, spec, checkpoint_format)
    assert read.zeros is not None
    assert torch.equal(read.zeros, zeros)


def test_activation_order_is_kept_as_g_idx():
    original = weight(4, 32)
    shuffled = (torch.randperm(64, generator=torch.Generator().manual_seed(1)) // 32).int()
    act_order = QuantizedWeight(original.codes, original.scales, None, shuffled, original.spec)
    read = unpack_gptq("l", pack_gptq("l", act_order).__getitem__, original.spec, "gptq")
    assert read.g_idx is not None
    assert torch.equal(read.g_idx, shuffled)
    assert torch.equal(read.dequantize(), act_order.dequantize())


def test_contradictions_are_refused():
    original = weight(4, 32)
    tensors = pack_gptq("layer", original)
    with pytest.raises(CheckpointError, match="contradict"):
        unpack_gptq("layer", tensors.__getitem__, QuantSpec(4, 64), "gptq")
    tensors["layer.g_idx"] = torch.zeros(64, dtype=torch.int32)
    with pytest.raises(CheckpointError, match="g_idx"):
        unpack_gptq("layer", tensors.__getitem__, original.spec, "gptq")
    with pytest.raises(CheckpointError, match="bits"):
        parse_quantization_config({"quant_method": "gptq"})
