import pytest
import torch

from llmopt.errors import CheckpointError
from llmopt.formats.gptq import GptqFormat
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
    tensors = GptqFormat(original.spec, 1).pack("layer", original)
    groups = original.scales.shape[1]
    assert {name: tuple(t.shape) for name, t in tensors.items()} == {
        "layer.qweight": (64 * bits // 32, 32),
        "layer.qzeros": (groups, 32 * bits // 32),
        "layer.scales": (groups, 32),
        "layer.g_idx": (64,),
    }
    read = GptqFormat(original.spec, 1).unpack("layer", tensors.__getitem__)
    assert torch.equal(read.dequantize(), original.dequantize())
    assert read.g_idx is None


def test_the_standard_formula_of_a_reader_gives_the_weight():
    """AutoGPTQ's definition, written out independently: W[k, o] = scale * (code - (zero + 1))."""
    original = weight(4, 32)
    tensors = GptqFormat(original.spec, 1).pack("layer", original)
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
    tensors = GptqFormat(original.spec, 1).pack("layer", original)
    eights = torch.full((32, 2), 8, dtype=torch.uint8)
    tensors["layer.qzeros"] = pack_words(eights, 4).T.contiguous()
    read = GptqFormat(original.spec, 1).unpack("layer", tensors.__getitem__)
    assert torch.equal(read.dequantize(), original.dequantize())


@pytest.mark.parametrize("version", [1, 2])
def test_asymmetric_zero_points_follow_the_declared_version(version):
    symmetric = weight(4, 32)
    zeros = torch.randint(1, 16, (32, 2), dtype=torch.uint8)
    stored = zeros - 1 if version == 1 else zeros
    tensors = GptqFormat(symmetric.spec, 1).pack("layer", symmetric)
    tensors["layer.qzeros"] = pack_words(stored, 4).T.contiguous()
    spec = QuantSpec(4, 32, symmetric=False)
    read = GptqFormat(spec, version).unpack("layer", tensors.__getitem__)
    assert read.zeros is not None
    assert torch.equal(read.zeros, zeros)


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_asymmetric_weights_are_written_as_version_2_with_every_zero_point(bits):
    spec = QuantSpec(bits, 32, symmetric=False)
    zeros = torch.arange(64).reshape(32, 2).remainder(spec.levels).to(torch.uint8)  # 0 included
    symmetric = weight(bits, 32)
    original = QuantizedWeight(symmetric.codes, symmetric.scales, zeros, None, spec)
    written = GptqFormat.for_spec(spec)
    assert written is not None
    config = written.config("rtn")
    assert (config["checkpoint_format"], config["sym"]) == ("gptq_v2", False)
    tensors = written.pack("layer", original)
    assert torch.equal(tensors["layer.qzeros"], pack_words(zeros, bits).T)  # as they are
    read = GptqFormat.from_config(config).unpack("layer", tensors.__getitem__)
    assert torch.equal(read.dequantize(), original.dequantize())


def test_symmetric_zero_points_of_version_1_are_recognized_whatever_is_declared():
    original = weight(4, 32)
    tensors = GptqFormat(original.spec, 1).pack("layer", original)
    read = GptqFormat(original.spec, 2).unpack("layer", tensors.__getitem__)
    assert torch.equal(read.dequantize(), original.dequantize())


def test_activation_order_is_kept_as_g_idx():
    original = weight(4, 32)
    shuffled = (torch.randperm(64, generator=torch.Generator().manual_seed(1)) // 32).int()
    act_order = QuantizedWeight(original.codes, original.scales, None, shuffled, original.spec)
    written = GptqFormat(original.spec, 1)
    read = written.unpack("l", written.pack("l", act_order).__getitem__)
    assert read.g_idx is not None
    assert torch.equal(read.g_idx, shuffled)
    assert torch.equal(read.dequantize(), act_order.dequantize())


def test_weights_are_counted_from_the_header():
    original = weight(3, 32)
    tensors = GptqFormat(original.spec, 1).pack("layer", original)
    count = GptqFormat(original.spec, 1).num_weights("layer", lambda name: tensors[name].shape)
    assert count == 32 * 64


def test_contradictions_are_refused():
    original = weight(4, 32)
    tensors = GptqFormat(original.spec, 1).pack("layer", original)
    with pytest.raises(CheckpointError, match="contradict"):
        GptqFormat(QuantSpec(4, 64), 1).unpack("layer", tensors.__getitem__)
    tensors["layer.g_idx"] = torch.zeros(64, dtype=torch.int32)
    with pytest.raises(CheckpointError, match="g_idx"):
        GptqFormat(original.spec, 1).unpack("layer", tensors.__getitem__)
    tensors["layer.qzeros"] = torch.zeros_like(tensors["layer.qzeros"])
    with pytest.raises(CheckpointError, match="declared symmetric"):
        GptqFormat(original.spec, 1).unpack("layer", tensors.__getitem__)
    with pytest.raises(CheckpointError, match="bits"):
        GptqFormat.from_config({"quant_method": "gptq"})


DYNAMIC = {
    r"-:model\.layers\.0\.mlp.*": {},
    r"+:.*down_proj": {"bits": 8, "group_size": -1, "desc_act": False},
    r".*\.1\.mlp": {"bits": 2, "sym": False},
}


@pytest.mark.parametrize(
    ("module", "spec"),
    [
        ("model.layers.1.mlp.down_proj", QuantSpec(8, None)),  # the first that matches
        ("model.layers.1.mlp.up_proj", QuantSpec(2, 32, symmetric=False)),
        ("model.layers.1.self_attn.q_proj", QuantSpec(4, 32)),
    ],
)
def test_dynamic_settings_of_other_tools_are_understood(module, spec):
    config = GptqFormat(QuantSpec(4, 32), 1).config("gptq") | {"dynamic": DYNAMIC}
    read = GptqFormat.from_config(config)
    assert read.spec_of(module) == spec
    with pytest.raises(CheckpointError, match="says that it is not"):
        read.spec_of("model.layers.0.mlp.down_proj")


@pytest.mark.parametrize(
    ("dynamic", "words"),
    [
        (["+:.*"], "unusable 'dynamic'"),
        ({"+:.*": 8}, "unusable 'dynamic'"),
        ({"+:(": {"bits": 8}}, "no regular expression"),
        ({"-:(a*)*": {}}, "for ever"),
        ({"+:.*": {"bits": "many"}}, "usable 'bits'"),
    ],
)
def test_unusable_dynamic_settings_are_refused(dynamic, words):
    config = GptqFormat(QuantSpec(4, 32), 1).config("gptq") | {"dynamic": dynamic}
    with pytest.raises(CheckpointError, match=words):
        GptqFormat.from_config(config)


def test_dynamic_settings_are_written_for_fused_names_too():
    attention = [f"model.layers.3.self_attn.{name}_proj" for name in "qkv"]
    layers = dict.fromkeys(attention, QuantSpec(8, 64)) | {"model.layers.3.mlp.down_proj": None}
    written = GptqFormat.for_spec(QuantSpec(4, 32), layers)
    assert written is not None
    assert written.config("gptq")["dynamic"] == {
        r"+:model\.layers\.3\.self_attn\.(?:q_proj|k_proj|v_proj|qkv_proj)$": {
            "bits": 8,
            "group_size": 64,
            "sym": True,
        },
        r"-:model\.layers\.3\.mlp\.down_proj$": {},
    }


@pytest.mark.parametrize(
    "g_idx",
    [
        torch.full((64,), 2**31 - 1, dtype=torch.int32),
        torch.arange(64) // 32 - 1,
        torch.zeros(64, 2, dtype=torch.int32),
        torch.zeros(63, dtype=torch.int32),
        torch.tensor(0),
    ],
)
def test_a_g_idx_that_is_no_grouping_is_refused(g_idx):
    original = weight(4, 32)
    written = GptqFormat(original.spec, 1)
    tensors = written.pack("layer", original) | {"layer.g_idx": g_idx}
    with pytest.raises(CheckpointError, match="layer layer has a g_idx that does not give every"):
        written.unpack("layer", tensors.__getitem__)


@pytest.mark.parametrize("part", ["qweight", "qzeros", "scales"])
@pytest.mark.parametrize("shape", [(), (8,), (2, 2, 2), (0, 4)])
def test_parts_that_are_no_matrix_are_refused(part, shape):
    original = weight(4, 32)
    written = GptqFormat(original.spec, 1)
    tensors = written.pack("layer", original)
    tensors[f"layer.{part}"] = torch.zeros(shape, dtype=tensors[f"layer.{part}"].dtype)
    with pytest.raises(CheckpointError, match=f"layer layer has the {part} .* a matrix"):
        written.unpack("layer", tensors.__getitem__)
