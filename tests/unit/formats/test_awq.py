import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from llmopt.errors import CheckpointError
from llmopt.formats.awq import AwqFormat
from llmopt.formats.quantized import QuantizedWeight, QuantSpec
from llmopt.formats.scales import round_scales

NIBBLE_OF_OUTPUT = [0, 4, 1, 5, 2, 6, 3, 7]  # where AutoAWQ puts outputs 0 .. 7 of a word


def random_weight(rows: int, columns: int, group_size: int, seed: int) -> QuantizedWeight:
    spec = QuantSpec(4, group_size, symmetric=False)
    generator = torch.Generator().manual_seed(seed)
    groups = columns // group_size
    return QuantizedWeight(
        torch.randint(0, 16, (rows, columns), generator=generator, dtype=torch.uint8),
        round_scales(torch.rand(rows, groups, generator=generator) + 0.1),
        torch.randint(0, 16, (rows, groups), generator=generator, dtype=torch.uint8),
        None,
        spec,
    )


def dequantize_like_a_kernel(tensors: dict[str, torch.Tensor], group_size: int) -> torch.Tensor:
    """AutoAWQ's definition, written out: W[k, o] = (code - zero) * scale, no minus one."""
    qweight, qzeros = tensors["layer.qweight"], tensors["layer.qzeros"]
    columns, rows = qweight.shape[0], qweight.shape[1] * 8
    dense = torch.zeros(rows, columns)
    for k in range(columns):
        for o in range(rows):
            shift = 4 * NIBBLE_OF_OUTPUT[o % 8]
            code = (qweight[k, o // 8].item() >> shift) & 15
            zero = (qzeros[k // group_size, o // 8].item() >> shift) & 15
            dense[o, k] = (code - zero) * tensors["layer.scales"][k // group_size, o].float()
    return dense


@given(
    words=st.integers(1, 3), groups=st.integers(1, 3), size=st.integers(1, 5), seed=st.integers(0)
)
def test_a_kernel_reads_the_weight_and_so_do_we(words, groups, size, seed):
    original = random_weight(8 * words, groups * size, size, seed % 2**32)
    weight_format = AwqFormat(original.spec)
    tensors = weight_format.pack("layer", original)
    assert torch.equal(dequantize_like_a_kernel(tensors, size), original.dequantize())
    read = weight_format.unpack("layer", tensors.__getitem__)
    assert read.zeros is not None
    assert original.zeros is not None
    assert torch.equal(read.codes, original.codes)
    assert torch.equal(read.zeros, original.zeros)
    assert torch.equal(read.scales, original.scales)


def test_shapes_and_types_are_those_of_the_layout():
    tensors = AwqFormat(QuantSpec(4, 16, symmetric=False)).pack("l", random_weight(24, 64, 16, 0))
    assert {name: (t.dtype, tuple(t.shape)) for name, t in tensors.items()} == {
        "l.qweight": (torch.int32, (64, 3)),
        "l.qzeros": (torch.int32, (4, 3)),
        "l.scales": (torch.float16, (4, 24)),
    }
    assert all(tensor.is_contiguous() for tensor in tensors.values())


def test_codes_0_to_7_make_the_well_known_word():
    codes = torch.arange(8, dtype=torch.uint8).reshape(8, 1)
    weight = QuantizedWeight(
        codes,
        torch.ones(8, 1, dtype=torch.float16),
        torch.zeros(8, 1, dtype=torch.uint8),
        None,
        QuantSpec(4, 1, symmetric=False),
    )
    assert AwqFormat(weight.spec).pack("l", weight)["l.qweight"].item() == 0x75316420


def test_symmetric_weights_are_stored_with_zero_8_and_read_back_symmetric():
    asymmetric = random_weight(16, 32, 16, 0)
    spec = QuantSpec(4, 16)
    original = QuantizedWeight(asymmetric.codes, asymmetric.scales, None, None, spec)
    weight_format = AwqFormat(spec)
    tensors = weight_format.pack("layer", original)
    assert tensors["layer.qzeros"].unique().tolist() == [0x88888888 - (1 << 32)]
    assert torch.equal(dequantize_like_a_kernel(tensors, 16), original.dequantize())
    read = AwqFormat.from_config(weight_format.config("rtn")).unpack("layer", tensors.__getitem__)
    assert read.zeros is None
    assert read.spec == spec


def test_zero_points_decide_where_sym_is_set_without_being_meant():
    original = random_weight(16, 32, 16, 0)
    config = AwqFormat(original.spec).config("awq") | {"sym": True}
    tensors = AwqFormat(original.spec).pack("layer", original)
    read = AwqFormat.from_config(config).unpack("layer", tensors.__getitem__)
    assert torch.equal(read.dequantize(), original.dequantize())


@pytest.mark.parametrize(
    "config",
    [
        {"w_bit": 4, "q_group_size": 64, "zero_point": True, "version": "GEMM"},
        {"bits": 4, "group_size": 64, "zero_point": True, "version": "gemm"},
        {"bits": 4, "group_size": 64, "format": "gemm", "sym": False},
    ],
)
def test_configs_of_the_tools_that_write_them_are_understood(config):
    assert AwqFormat.from_config(config).spec == QuantSpec(4, 64, symmetric=False)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"version": "gemv"}, "version gemv"),
        ({"bits": 8}, "8 bits"),
        ({"zero_point": False}, "zero_point False"),
        ({"group_size": None}, "group_size"),
    ],
)
def test_what_cannot_be_read_is_refused(change, words):
    config = AwqFormat(QuantSpec(4, 64, symmetric=False)).config("awq")
    with pytest.raises(CheckpointError, match=words):
        AwqFormat.from_config(config | change)


def test_tensors_that_contradict_the_config_are_refused():
    original = random_weight(16, 64, 16, 0)
    tensors = AwqFormat(original.spec).pack("layer", original)
    other = AwqFormat(QuantSpec(4, 32, symmetric=False))
    with pytest.raises(CheckpointError, match=r"layer has scales .*contradict"):
        other.unpack("layer", tensors.__getitem__)


@pytest.mark.parametrize(
    ("spec", "held"),
    [
        (QuantSpec(4, 64), True),
        (QuantSpec(4, 64, symmetric=False), True),
        (QuantSpec(8, 64), False),
        (QuantSpec(4, None), False),
    ],
)
def test_only_4_bits_in_groups_are_written(spec, held):
    assert (AwqFormat.for_spec(spec) is not None) == held


def test_weights_are_counted_from_the_header():
    original = random_weight(24, 64, 16, 0)
    tensors = AwqFormat(original.spec).pack("l", original)
    assert AwqFormat(original.spec).num_weights("l", lambda name: tensors[name].shape) == 24 * 64


def test_layers_that_are_left_alone_are_named():
    layers = {"a.q_proj": QuantSpec(4, 64), "a.o_proj": None}
    written = AwqFormat.for_spec(QuantSpec(4, 64), layers)
    assert written is not None
    assert written.config("awq")["modules_to_not_convert"] == ["a.o_proj", "lm_head"]
    assert AwqFormat.from_config(written.config("awq")) == written


@pytest.mark.parametrize("part", ["qweight", "qzeros", "scales"])
@pytest.mark.parametrize("shape", [(), (8,), (2, 2, 2), (0, 4)])
def test_parts_that_are_no_matrix_are_refused(part, shape):
    original = random_weight(16, 32, 16, 0)
    tensors = AwqFormat(original.spec).pack("layer", original)
    tensors[f"layer.{part}"] = torch.zeros(shape, dtype=tensors[f"layer.{part}"].dtype)
    with pytest.raises(CheckpointError, match=f"layer layer has the {part} .* a matrix"):
        AwqFormat(original.spec).unpack("layer", tensors.__getitem__)
