import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from llmopt.errors import CheckpointError
from llmopt.formats.compressed_tensors import CompressedTensorsFormat, Layout
from llmopt.formats.quantized import QuantizedWeight, QuantSpec
from llmopt.formats.scales import round_scales


def random_weight(spec: QuantSpec, rows: int, columns: int, seed: int = 0) -> QuantizedWeight:
    generator = torch.Generator().manual_seed(seed)
    groups = spec.num_groups(columns)
    zeros = torch.randint(0, spec.levels, (rows, groups), generator=generator, dtype=torch.uint8)
    return QuantizedWeight(
        torch.randint(0, spec.levels, (rows, columns), generator=generator, dtype=torch.uint8),
        round_scales(torch.rand(rows, groups, generator=generator) + 0.1),
        None if spec.symmetric else zeros,
        None,
        spec,
    )


def signed_field(words: list[int], index: int, bits: int) -> int:
    """Element `index` of a packed run: an unsigned field, less half its range."""
    word, shift = divmod(index * bits, 32)
    return ((words[word] >> shift) & ((1 << bits) - 1)) - (1 << (bits - 1))


def dequantize_like_a_reader(
    tensors: dict[str, torch.Tensor], spec: QuantSpec, rows: int, columns: int
) -> torch.Tensor:
    """The definition, written out: (signed code - signed zero) * scale."""
    dense = torch.zeros(rows, columns)
    scales = tensors["layer.weight_scale"].float()
    packed_zeros = tensors.get("layer.weight_zero_point")
    for o in range(rows):
        words = tensors["layer.weight_packed"][o].tolist()
        for k in range(columns):
            g = k // (spec.group_size or columns)
            zero = 0
            if packed_zeros is not None:
                zero = signed_field(packed_zeros[:, g].tolist(), o, spec.bits)
            dense[o, k] = (signed_field(words, k, spec.bits) - zero) * scales[o, g]
    return dense


@given(
    bits=st.sampled_from([4, 8]),
    symmetric=st.booleans(),
    per_channel=st.booleans(),
    runs=st.integers(1, 2),
    seed=st.integers(0, 2**32 - 1),
)
def test_a_reader_finds_the_weight_and_so_do_we(bits, symmetric, per_channel, runs, seed):
    spec = QuantSpec(bits, None if per_channel else 8, symmetric)
    original = random_weight(spec, 8 * runs, 16, seed)
    weight_format = CompressedTensorsFormat(spec, "pack-quantized")
    tensors = weight_format.pack("layer", original)
    dense = dequantize_like_a_reader(tensors, spec, 8 * runs, 16)
    assert torch.equal(dense, original.dequantize())
    read = CompressedTensorsFormat.from_config(weight_format.config("rtn"))
    assert read == weight_format
    assert torch.equal(read.unpack("layer", tensors.__getitem__).dequantize(), dense)


def test_shapes_and_types_are_those_of_the_layout():
    spec = QuantSpec(4, 16, symmetric=False)
    weight_format = CompressedTensorsFormat(spec, "pack-quantized")
    tensors = weight_format.pack("l", random_weight(spec, 24, 64))
    assert {name: (t.dtype, tuple(t.shape)) for name, t in tensors.items()} == {
        "l.weight_packed": (torch.int32, (24, 8)),
        "l.weight_scale": (torch.float16, (24, 4)),
        "l.weight_shape": (torch.int64, (2,)),
        "l.weight_zero_point": (torch.int32, (3, 4)),
    }
    assert tensors["l.weight_shape"].tolist() == [24, 64]


@pytest.mark.parametrize("symmetric", [True, False])
def test_bytes_are_signed_codes_with_one_scale_per_row(symmetric):
    spec = QuantSpec(8, None, symmetric)
    original = random_weight(spec, 16, 32)
    weight_format = CompressedTensorsFormat(spec, "int-quantized")
    tensors = weight_format.pack("l", original)
    assert tensors["l.weight"].dtype == torch.int8
    assert tensors["l.weight_scale"].shape == (16, 1)
    zeros = 0 if symmetric else tensors["l.weight_zero_point"].float()
    dense = (tensors["l.weight"].float() - zeros) * tensors["l.weight_scale"].float()
    assert torch.equal(dense, original.dequantize())
    read = CompressedTensorsFormat.from_config(weight_format.config("rtn"))
    assert torch.equal(read.unpack("l", tensors.__getitem__).dequantize(), dense)
    assert read.num_weights("l", lambda name: tensors[name].shape) == 16 * 32


def test_a_g_idx_of_older_files_is_read():
    spec = QuantSpec(4, 16)
    original = random_weight(spec, 8, 64)
    weight_format = CompressedTensorsFormat(spec, "pack-quantized")
    tensors = weight_format.pack("l", original)
    shuffled = (torch.randperm(64, generator=torch.Generator().manual_seed(1)) // 16).int()
    tensors["l.weight_g_idx"] = shuffled
    config = weight_format.config("gptq")
    config["config_groups"]["group_0"]["weights"]["actorder"] = "group"
    read = CompressedTensorsFormat.from_config(config).unpack("l", tensors.__getitem__)
    expected = QuantizedWeight(original.codes, original.scales, None, shuffled, spec)
    assert torch.equal(read.dequantize(), expected.dequantize())


def test_rows_that_end_within_a_word_are_cut_at_the_declared_shape():
    spec = QuantSpec(4, None)
    tensors = CompressedTensorsFormat(spec, "pack-quantized").pack(
        "l", random_weight(spec, 8, 64, 1)
    )
    tensors["l.weight_shape"] = torch.tensor([8, 60])  # the last 4 codes of the word are padding
    read = CompressedTensorsFormat(spec, "pack-quantized").unpack("l", tensors.__getitem__)
    assert torch.equal(read.codes, random_weight(spec, 8, 64, 1).codes[:, :60])


def changed(layout: Layout = "pack-quantized", **weights: object) -> dict[str, object]:
    config = CompressedTensorsFormat(QuantSpec(4, 64), layout).config("rtn")
    config["config_groups"]["group_0"]["weights"].update(weights)
    return config


@pytest.mark.parametrize(
    ("config", "words"),
    [
        (changed() | {"format": "float-quantized"}, "float-quantized"),
        (changed() | {"config_groups": {}}, "other than one group"),
        (changed() | {"config_groups": {"a": {}, "b": {}}}, "other than one group"),
        (changed() | {"config_groups": {"W4A16": ["Linear"]}}, "preset"),
        (changed(type="float"), "float weights"),
        (changed(strategy="tensor"), "one scale per tensor"),
        (changed(num_bits=3), "3-bit"),
        (changed("int-quantized"), "4-bit weights as int-quantized"),
        (changed(num_bits=None), "num_bits"),
        (changed(group_size="many"), "group_size"),
    ],
)
def test_what_cannot_be_read_is_refused(config, words):
    with pytest.raises(CheckpointError, match=words):
        CompressedTensorsFormat.from_config(config)


def test_quantized_activations_are_refused():
    config = CompressedTensorsFormat(QuantSpec(8, None), "int-quantized").config("rtn")
    config["config_groups"]["group_0"]["input_activations"] = {"num_bits": 8, "dynamic": True}
    with pytest.raises(CheckpointError, match="quantized activations"):
        CompressedTensorsFormat.from_config(config)


def test_a_strategy_that_is_left_out_follows_from_the_group_size():
    channel = CompressedTensorsFormat.from_config(changed(strategy=None, group_size=-1))
    assert channel.spec == QuantSpec(4, None)
    assert CompressedTensorsFormat.from_config(changed(strategy=None)).spec == QuantSpec(4, 64)


def test_tensors_that_contradict_the_config_are_refused():
    spec = QuantSpec(4, 16)
    weight_format = CompressedTensorsFormat(spec, "pack-quantized")
    tensors = weight_format.pack("layer", random_weight(spec, 8, 64))
    with pytest.raises(CheckpointError, match=r"layer has scales .*contradict"):
        CompressedTensorsFormat(QuantSpec(4, 32), "pack-quantized").unpack(
            "layer", tensors.__getitem__
        )
    tensors["layer.weight_shape"] = torch.tensor([8, 128])
    with pytest.raises(CheckpointError, match=r"weight_shape of \[8, 128\]"):
        weight_format.unpack("layer", tensors.__getitem__)


def test_other_widths_are_not_written():
    assert CompressedTensorsFormat.for_spec(QuantSpec(3, 64)) is None
    assert CompressedTensorsFormat.for_spec(QuantSpec(8, None, symmetric=False)) is not None
