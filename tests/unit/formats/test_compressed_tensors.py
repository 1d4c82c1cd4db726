import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from llmopt.errors import CheckpointError
from llmopt.formats.compressed_tensors import CompressedTensorsFormat
from llmopt.formats.compressed_tensors_config import CompressedScheme, Layout
from llmopt.formats.dynamic import Activations, DynamicSpec, DynamicWeight
from llmopt.formats.fp8 import Fp8Spec
from llmopt.formats.quantized import QuantizedWeight, QuantSpec
from llmopt.formats.scales import round_scales
from llmopt.quantize.fp8 import quantize_fp8


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


def packed(spec: QuantSpec) -> CompressedTensorsFormat:
    return CompressedTensorsFormat(CompressedScheme(spec, "pack-quantized"))


def signed_field(words: list[int], index: int, bits: int) -> int:
    """Element `index` of a packed run without gaps: an unsigned field, less half its range."""
    run = sum((word & 0xFFFFFFFF) << (32 * position) for position, word in enumerate(words))
    return ((run >> (index * bits)) & ((1 << bits) - 1)) - (1 << (bits - 1))


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
    bits=st.sampled_from([2, 3, 4, 8]),
    symmetric=st.booleans(),
    per_channel=st.booleans(),
    runs=st.integers(1, 2),
    seed=st.integers(0, 2**32 - 1),
)
def test_a_reader_finds_the_weight_and_so_do_we(bits, symmetric, per_channel, runs, seed):
    spec = QuantSpec(bits, None if per_channel else 8, symmetric)
    original = random_weight(spec, 32, 32 * runs, seed)
    weight_format = packed(spec)
    tensors = weight_format.pack("layer", original)
    dense = dequantize_like_a_reader(tensors, spec, 32, 32 * runs)
    assert torch.equal(dense, original.dequantize())
    read = CompressedTensorsFormat.from_config(weight_format.config("rtn"))
    assert read == weight_format
    assert torch.equal(read.unpack("layer", tensors.__getitem__).dequantize(), dense)


def test_shapes_and_types_are_those_of_the_layout():
    spec = QuantSpec(4, 16, symmetric=False)
    weight_format = packed(spec)
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
    weight_format = CompressedTensorsFormat(CompressedScheme(spec, "int-quantized"))
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
    weight_format = packed(spec)
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
    tensors = packed(spec).pack("l", random_weight(spec, 8, 64, 1))
    tensors["l.weight_shape"] = torch.tensor([8, 60])  # the last 4 codes of the word are padding
    read = packed(spec).unpack("l", tensors.__getitem__)
    assert torch.equal(read.codes, random_weight(spec, 8, 64, 1).codes[:, :60])


def changed(layout: Layout = "pack-quantized", **weights: object) -> dict[str, object]:
    config = CompressedTensorsFormat(CompressedScheme(QuantSpec(4, 64), layout)).config("rtn")
    config["config_groups"]["group_0"]["weights"].update(weights)
    return config


def group(**keys: object) -> dict[str, object]:
    config = changed()
    config["config_groups"]["group_0"].update(keys)
    return config


@pytest.mark.parametrize(
    ("config", "words"),
    [
        (group(format="nvfp4-pack-quantized"), "the format nvfp4"),
        (group(format="float-quantized"), "int weights as float-quantized"),
        (group(targets="Linear"), "the targets Linear"),
        (group(targets=["re:("]), "no regular expression"),
        (group(output_activations={"num_bits": 8}), "quantized outputs"),
        (changed() | {"ignore": [3]}, "no text"),
        (changed() | {"config_groups": {}}, "no config_groups"),
        (changed() | {"config_groups": {"a": {}, "b": {}}}, "preset"),
        (changed() | {"config_groups": {"W4A16": ["Linear"]}}, "preset"),
        (changed(type="float"), "4-bit float weights"),
        (changed(type="float", num_bits=8, strategy="channel"), "float weights as pack"),
        (changed(type="float", num_bits=8, strategy="block"), "one scale per block"),
        (changed(strategy="tensor"), "one scale per tensor"),
        (changed(num_bits=5), "5-bit"),
        (changed(num_bits=None), "num_bits"),
        (changed(group_size="many"), "group_size"),
    ],
)
def test_what_cannot_be_read_is_refused(config, words):
    with pytest.raises(CheckpointError, match=words):
        CompressedTensorsFormat.from_config(config)


PER_TOKEN = {"num_bits": 8, "type": "int", "symmetric": True, "strategy": "token", "dynamic": True}


@pytest.mark.parametrize(
    "change",
    [
        {"dynamic": False, "strategy": "tensor"},
        {"strategy": "tensor"},
        {"strategy": "group"},
        {"symmetric": False},
        {"num_bits": 4},
        {"dynamic": "local"},
    ],
)
def test_inputs_that_are_quantized_otherwise_are_refused(change):
    config = CompressedTensorsFormat(CompressedScheme(QuantSpec(8, None), "int-quantized"))
    config = config.config("rtn")
    config["config_groups"]["group_0"]["input_activations"] = PER_TOKEN | change
    with pytest.raises(CheckpointError, match=r"inputs of .*per token at run time"):
        CompressedTensorsFormat.from_config(config)


def dynamic(spec: QuantSpec | Fp8Spec, activations: Activations) -> DynamicWeight:
    if isinstance(spec, QuantSpec):
        return DynamicWeight(random_weight(spec, 32, 64), activations)
    weight = torch.randn(32, 64, generator=torch.Generator().manual_seed(0))
    return DynamicWeight(quantize_fp8(weight), activations)


@pytest.mark.parametrize(
    ("weight", "layout", "preset"),
    [
        (dynamic(QuantSpec(8, None), "int8"), "int-quantized", ("int", "int")),
        (dynamic(Fp8Spec(), "fp8"), "float-quantized", ("float", "float")),
    ],
)
def test_inputs_quantized_per_token_are_in_the_config_only(weight, layout, preset):
    weight_format = CompressedTensorsFormat.for_spec(weight.spec)
    assert weight_format is not None
    config = weight_format.config("rtn")
    (keys,) = config["config_groups"].values()
    assert config["format"] == keys["format"] == layout
    assert keys["targets"] == ["Linear"]
    assert (keys["weights"]["type"], keys["input_activations"]["type"]) == preset
    assert keys["weights"]["strategy"] == "channel"
    assert (keys["weights"]["dynamic"], keys["input_activations"]["dynamic"]) == (False, True)
    assert keys["input_activations"]["strategy"] == "token"
    tensors = weight_format.pack("l", weight)
    assert set(tensors) == {"l.weight", "l.weight_scale"}
    assert tensors["l.weight"].dtype in (torch.int8, torch.float8_e4m3fn)
    assert tensors["l.weight_scale"].dtype == torch.float32
    assert tensors["l.weight_scale"].shape == (32, 1)
    read = CompressedTensorsFormat.from_config(config)
    assert read == weight_format
    unpacked = read.unpack("l", tensors.__getitem__)
    assert isinstance(unpacked, DynamicWeight)
    assert unpacked.spec == weight.spec
    assert torch.equal(unpacked.dequantize(), weight.dequantize())
    assert read.num_weights("l", lambda name: tensors[name].shape) == 32 * 64


@pytest.mark.parametrize("bits", [2, 4])
def test_bytes_hold_codes_of_fewer_bits_in_groups(bits):
    """What llm-compressor writes for W4A8: signed codes, one to a byte."""
    spec = QuantSpec(bits, 16)
    original = random_weight(spec, 8, 64)
    scheme = CompressedScheme(DynamicSpec(spec, "int8"), "int-quantized")
    weight_format = CompressedTensorsFormat(scheme)
    tensors = weight_format.pack("l", DynamicWeight(original, "int8"))
    signed = tensors["l.weight"].float()
    assert signed.min() == -spec.midpoint
    assert signed.max() == spec.midpoint - 1
    scales = tensors["l.weight_scale"].repeat_interleave(16, dim=1)
    assert torch.equal(signed * scales, original.dequantize())
    read = CompressedTensorsFormat.from_config(weight_format.config("rtn"))
    assert torch.equal(read.unpack("l", tensors.__getitem__).dequantize(), original.dequantize())


@pytest.mark.parametrize("shape", [(), (1,), (1, 1)])
def test_one_scale_of_a_whole_matrix_is_read_in_any_shape(shape):
    values = torch.randn(8, 16).to(torch.float8_e4m3fn)
    tensors = {"l.weight": values, "l.weight_scale": torch.tensor(0.5).reshape(shape)}
    read = CompressedTensorsFormat(CompressedScheme(Fp8Spec(per_row=False), "float-quantized"))
    assert torch.equal(read.unpack("l", tensors.__getitem__).dequantize(), values.float() * 0.5)
    tensors["l.weight_scale"] = torch.ones(8, 1)
    with pytest.raises(CheckpointError, match=r"scales \[\d, 1\] where .* 1 scales"):
        read.unpack("l", tensors.__getitem__)
    tensors["l.weight"] = torch.zeros(8, 16, dtype=torch.int8)
    with pytest.raises(CheckpointError, match=r"torch\.int8 values"):
        read.unpack("l", tensors.__getitem__)


def scheme_names(config: dict[str, object], *modules: str) -> list[str]:
    read = CompressedTensorsFormat.from_config(config)
    return [read.scheme_of(module).spec.label("")[1:] for module in modules]


def test_targets_are_tried_as_the_library_tries_them():
    """Names before patterns before classes; patterns in alphabetical order; ignored ones first."""

    def group_of(bits: int, *targets: str) -> dict[str, object]:
        (keys,) = changed(num_bits=bits)["config_groups"].values()
        return keys | {"targets": list(targets)}

    config = changed() | {
        "config_groups": {
            "group_0": group_of(4, "Linear"),
            "group_1": group_of(8, "re:b", "a.x"),
            "group_2": group_of(2, "re:a", "re:bb"),
        },
        "ignore": ["a.skipped"],
    }
    assert scheme_names(config, "c", "a.x", "a.y", "bb") == ["w4g64", "w8g64", "w2g64", "w8g64"]
    with pytest.raises(CheckpointError, match="says that it is not"):
        scheme_names(config, "a.skipped")


def test_without_a_class_only_what_is_named_is_quantized():
    config = group(targets=["re:.*down_proj$"])
    assert scheme_names(config, "model.layers.0.mlp.down_proj") == ["w4g64"]
    with pytest.raises(CheckpointError, match="says that it is not"):
        scheme_names(config, "model.layers.0.mlp.up_proj")


def test_settings_of_single_layers_are_groups_that_match_fused_names():
    attention = [f"model.layers.1.self_attn.{name}_proj" for name in "qkv"]
    layers = {
        "lm_head": QuantSpec(4, 64),
        **dict.fromkeys(attention, DynamicSpec(QuantSpec(8, None), "int8")),
        "model.layers.0.mlp.down_proj": None,
    }
    weight_format = CompressedTensorsFormat.for_spec(QuantSpec(4, 64), layers)
    assert weight_format is not None
    config = weight_format.config("rtn")
    assert config["format"] == "mixed-precision"
    assert config["ignore"] == ["model.layers.0.mlp.down_proj"]
    targets = [keys["targets"] for keys in config["config_groups"].values()]
    attention_pattern = r"re:model\.layers\.1\.self_attn\.(?:q_proj|k_proj|v_proj|qkv_proj)$"
    assert targets == [["Linear", "re:lm_head$"], [attention_pattern]]
    assert scheme_names(config, "lm_head", attention[0]) == ["w4g64", "w8a8"]


def test_a_strategy_that_is_left_out_follows_from_the_group_size():
    channel = CompressedTensorsFormat.from_config(changed(strategy=None, group_size=-1))
    assert channel.scheme.spec == QuantSpec(4, None)
    assert CompressedTensorsFormat.from_config(changed(strategy=None)).scheme.spec == QuantSpec(
        4, 64
    )


def test_tensors_that_contradict_the_config_are_refused():
    spec = QuantSpec(4, 16)
    weight_format = packed(spec)
    tensors = weight_format.pack("layer", random_weight(spec, 8, 64))
    with pytest.raises(CheckpointError, match=r"layer has scales .*contradict"):
        packed(QuantSpec(4, 32)).unpack("layer", tensors.__getitem__)
    tensors["layer.weight_shape"] = torch.tensor([8, 128])
    with pytest.raises(CheckpointError, match=r"weight_shape of \[8, 128\]"):
        weight_format.unpack("layer", tensors.__getitem__)


@pytest.mark.parametrize("part", ["weight_packed", "weight_zero_point"])
@pytest.mark.parametrize("shape", [(), (8,), (2, 2, 2), (0, 4)])
def test_words_that_are_no_matrix_are_refused(part, shape):
    spec = QuantSpec(4, 16, symmetric=False)
    tensors = packed(spec).pack("layer", random_weight(spec, 8, 64))
    tensors[f"layer.{part}"] = torch.zeros(shape, dtype=torch.int32)
    with pytest.raises(CheckpointError, match=f"layer layer has the {part} .* a matrix"):
        packed(spec).unpack("layer", tensors.__getitem__)


@pytest.mark.parametrize("layout", ["int-quantized", "float-quantized"])
@pytest.mark.parametrize("shape", [(), (8,), (2, 2, 2)])
def test_weights_that_are_no_matrix_are_refused(layout, shape):
    spec = QuantSpec(8, None) if layout == "int-quantized" else Fp8Spec()
    dtype = torch.int8 if layout == "int-quantized" else torch.float8_e4m3fn
    tensors = {"l.weight": torch.zeros(shape).to(dtype), "l.weight_scale": torch.ones(8, 1)}
    read = CompressedTensorsFormat(CompressedScheme(spec, layout))
    with pytest.raises(CheckpointError, match=r"layer l has the weight .* a matrix"):
        read.unpack("l", tensors.__getitem__)


@pytest.mark.parametrize("declared", [[8, 64, 1], [8], [], [8, -64]])
def test_a_weight_shape_that_is_none_is_refused(declared):
    spec = QuantSpec(4, 16)
    tensors = packed(spec).pack("layer", random_weight(spec, 8, 64))
    tensors["layer.weight_shape"] = torch.tensor(declared, dtype=torch.int64)
    with pytest.raises(CheckpointError, match=r"layer layer has .*weight_shape"):
        packed(spec).unpack("layer", tensors.__getitem__)
