import json
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from llmopt.errors import CheckpointError
from llmopt.formats.bitsandbytes import CodebookFormat, Int8RowsFormat, bitsandbytes_format
from llmopt.formats.checkpoint import CheckpointReader, CheckpointWriter
from llmopt.formats.codebook import CodebookWeight, NestedAbsmax
from llmopt.formats.quantized import QuantizedWeight, QuantSpec, StoredWeight
from llmopt.formats.weights import WeightFormat, quantized_weights, scheme

STATE = "m.weight.quant_state.bitsandbytes__nf4"
FORMATS: list[WeightFormat] = [
    CodebookFormat("nf4"),
    CodebookFormat("fp4", double_quant=True),
    Int8RowsFormat(),
]


def codebook_weight(
    weight_format: CodebookFormat, rows: int, columns: int, block_size: int = 64
) -> CodebookWeight:
    generator = torch.Generator().manual_seed(rows)
    codes = torch.randint(0, 16, (rows, columns), generator=generator, dtype=torch.uint8)
    count = -(-rows * columns // block_size)
    stored: torch.Tensor | NestedAbsmax = torch.rand(count, generator=generator)
    if weight_format.double_quant:
        stored = NestedAbsmax(
            torch.randint(0, 256, (count,), generator=generator, dtype=torch.uint8),
            torch.rand(-(-count // 256), generator=generator),
            torch.randn(256, generator=generator),
            torch.rand((), generator=generator).item(),
            256,
        )
    return CodebookWeight(codes, stored, weight_format.kind, block_size)


def int8_weight(rows: int, columns: int) -> QuantizedWeight:
    generator = torch.Generator().manual_seed(rows)
    codes = torch.randint(1, 256, (rows, columns), generator=generator, dtype=torch.uint8)
    scales = torch.rand(rows, 1, generator=generator).bfloat16().float()
    return QuantizedWeight(codes, scales, None, None, QuantSpec(8, None))


def weight_for(weight_format: WeightFormat, rows: int = 6, columns: int = 64) -> StoredWeight:
    if isinstance(weight_format, CodebookFormat):
        return codebook_weight(weight_format, rows, columns)
    return int8_weight(rows, columns)


def pack(weight_format: WeightFormat) -> dict[str, torch.Tensor]:
    return weight_format.pack("m", weight_for(weight_format))


def with_state(tensors: dict[str, torch.Tensor], state: object) -> dict[str, torch.Tensor]:
    text = state if isinstance(state, str) else json.dumps(state)
    return tensors | {STATE: torch.tensor(list(text.encode()), dtype=torch.uint8)}


@pytest.mark.parametrize("double_quant", [False, True])
@given(rows=st.integers(1, 9), columns=st.integers(1, 90), block_size=st.sampled_from([32, 64]))
def test_a_codebook_weight_survives_the_file(double_quant, rows, columns, block_size):
    weight_format = CodebookFormat("nf4", double_quant)
    original = codebook_weight(weight_format, rows, columns, block_size)
    tensors = weight_format.pack("m", original)
    flat = original.codes.flatten().tolist()
    high, low = flat[0::2], flat[1::2] + [0] * (len(flat) % 2)
    assert tensors["m.weight"].flatten().tolist() == [
        16 * first + second for first, second in zip(high, low, strict=True)
    ]
    read = weight_format.unpack("m", tensors.__getitem__)
    assert torch.equal(read.codes, original.codes)
    assert torch.equal(read.absmax, original.absmax)
    assert torch.equal(read.dequantize(), original.dequantize())
    assert read.block_size == block_size


@given(rows=st.integers(1, 9), columns=st.integers(1, 90))
def test_int8_rows_survive_the_file(rows, columns):
    original = int8_weight(rows, columns)
    tensors = Int8RowsFormat().pack("m", original)
    read = Int8RowsFormat().unpack("m", tensors.__getitem__)
    assert torch.equal(read.codes, original.codes)
    assert torch.equal(read.scales, original.scales)
    dense = tensors["m.weight"].float() * tensors["m.SCB"][:, None] / 127
    assert torch.equal(dense, original.dequantize())


def test_names_shapes_and_types_are_those_of_the_layout():
    weight_format = CodebookFormat("nf4", double_quant=True, dtype="float16")
    tensors = weight_format.pack("m", codebook_weight(weight_format, 65, 256))
    state = json.loads(tensors.pop(STATE).numpy().tobytes())
    assert {name: (t.dtype, tuple(t.shape)) for name, t in tensors.items()} == {
        "m.weight": (torch.uint8, (65 * 128, 1)),
        "m.weight.absmax": (torch.uint8, (260,)),
        "m.weight.quant_map": (torch.float32, (16,)),
        "m.weight.nested_absmax": (torch.float32, (2,)),
        "m.weight.nested_quant_map": (torch.float32, (256,)),
    }
    assert state.pop("nested_offset") > 0
    assert state == {
        "quant_type": "nf4",
        "blocksize": 64,
        "dtype": "float16",
        "shape": [65, 256],
        "nested_blocksize": 256,
        "nested_dtype": "float32",
    }


def test_int8_names_shapes_and_types_are_those_of_the_layout():
    tensors = Int8RowsFormat().pack("m", int8_weight(3, 5))
    assert {name: (t.dtype, tuple(t.shape)) for name, t in tensors.items()} == {
        "m.weight": (torch.int8, (3, 5)),
        "m.SCB": (torch.float32, (3,)),
        "m.weight_format": (torch.uint8, ()),
    }


def write(path: Path, weight_format: WeightFormat) -> StoredWeight:
    """A checkpoint with the quantized layers `m` and `n`, a bias, and a dense layer."""
    weight = weight_for(weight_format)
    with CheckpointWriter(path) as writer:
        for module in ("m", "n"):
            for name, tensor in weight_format.pack(module, weight).items():
                writer.add(name, tensor.clone())
        writer.add("m.bias", torch.zeros(6))
        writer.add("dense.weight", torch.zeros(2, 2))
        writer.set_config({"quantization_config": weight_format.config("the-method")})
    return weight


@pytest.mark.parametrize("weight_format", FORMATS)
def test_layers_are_found_and_read(tmp_path, weight_format):
    original = write(tmp_path / "out", weight_format)
    reader = CheckpointReader(tmp_path / "out")
    weights = quantized_weights(reader)
    assert weights is not None
    assert "m" in weights
    assert "dense" not in weights
    assert torch.equal(weights.weight("m").dequantize(), original.dequantize())
    assert weights.num_weights("n") == 6 * 64
    names = reader.names()
    parts = {"m.bias": None, "dense.weight": None}
    assert {name: weights.module_of(name) for name in names} == {
        name: parts.get(name, name[0]) for name in names
    }
    assert scheme(reader, torch.float32) in ("nf4", "fp4-dq", "int8")


@pytest.mark.parametrize("weight_format", FORMATS)
def test_the_format_is_recognized_by_its_config(weight_format):
    assert bitsandbytes_format(weight_format.config("nf4")) == weight_format


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({}, "neither of load_in_4bit"),
        ({"load_in_4bit": True, "load_in_8bit": True}, "both of load_in_4bit"),
        ({"load_in_4bit": True, "bnb_4bit_quant_type": "af4"}, "type af4"),
        ({"load_in_4bit": True, "bnb_4bit_quant_type": ["nf4"]}, "type .'nf4'."),
        ({"load_in_4bit": True, "bnb_4bit_quant_storage": "bfloat16"}, "stored as bfloat16"),
    ],
)
def test_configs_that_cannot_be_read_are_refused(config, words):
    with pytest.raises(CheckpointError, match=words):
        bitsandbytes_format(config)


@pytest.mark.parametrize(
    "state",
    [
        "",
        "{",
        "\xff",
        "[]",
        "7",
        "null",
        "{}",
        "[" * 3000,
        "1" * 4000,
        "{}" + " " * 5000,
        {"quant_type": "nf4", "blocksize": 64, "dtype": "float32"},
        {"quant_type": "nf4", "blocksize": 64, "dtype": "float32", "shape": None},
        {"quant_type": "nf4", "blocksize": 64, "dtype": "float32", "shape": [6]},
        {"quant_type": "nf4", "blocksize": 64, "dtype": "float32", "shape": [6, 64, 1]},
        {"quant_type": "nf4", "blocksize": 64, "dtype": "float32", "shape": [-6, -64]},
        {"quant_type": "nf4", "blocksize": 64, "dtype": "float32", "shape": [6.0, 64.0]},
        {"quant_type": "nf4", "blocksize": 0, "dtype": "float32", "shape": [6, 64]},
        {"quant_type": "nf4", "blocksize": [64], "dtype": "float32", "shape": [6, 64]},
        {"quant_type": ["nf4"], "blocksize": 64, "dtype": "float32", "shape": [6, 64]},
        {
            "quant_type": "nf4",
            "blocksize": 64,
            "dtype": "float32",
            "shape": [6, 64],
            "nested_blocksize": 256,
            "nested_offset": float("nan"),
        },
    ],
)
def test_a_malformed_quant_state_is_refused(state):
    tensors = with_state(pack(CodebookFormat("nf4")), state)
    with pytest.raises(CheckpointError, match="layer m has an unusable quant_state"):
        CodebookFormat("nf4").unpack("m", tensors.__getitem__)


def test_a_quant_state_of_other_sizes_or_codebook_is_refused():
    weight_format = CodebookFormat("nf4")
    tensors = pack(weight_format)
    state = json.loads(tensors[STATE].numpy().tobytes())
    for change, words in [
        ({"shape": [6, 1 << 60]}, r"codes uint8 \[192, 1\] where 6 x"),
        ({"blocksize": 32}, r"absmax float32 \[6\] where float32 \[12\]"),
        ({"quant_type": "fp4"}, "quant_state of fp4 where nf4"),
        ({"nested_blocksize": 256, "nested_offset": 0.0}, r"nested_absmax .* float32 \[1\]"),
    ]:
        damaged = with_state(tensors, state | change)
        damaged["m.weight.nested_absmax"] = torch.ones(2)
        damaged["m.weight.nested_quant_map"] = torch.ones(256)
        with pytest.raises(CheckpointError, match=words):
            weight_format.unpack("m", damaged.__getitem__)


@pytest.mark.parametrize(
    ("part", "tensor", "words"),
    [
        ("m.weight", torch.zeros(192, 1), "codes float32"),
        ("m.weight", torch.zeros(191, 1, dtype=torch.uint8), r"codes uint8 \[191, 1\]"),
        ("m.weight.absmax", torch.zeros(6, 1), r"absmax float32 \[6, 1\]"),
        ("m.weight.absmax", torch.zeros(6, dtype=torch.uint8), r"absmax uint8 \[6\]"),
        ("m.weight.quant_map", torch.zeros(16), "another codebook than nf4"),
        ("m.weight.quant_map", torch.zeros(256), "another codebook than nf4"),
    ],
)
def test_tensors_of_the_wrong_size_or_type_are_refused(part, tensor, words):
    weight_format = CodebookFormat("nf4")
    with pytest.raises(CheckpointError, match=words):
        weight_format.unpack("m", (pack(weight_format) | {part: tensor}).__getitem__)


def test_a_file_saved_after_a_forward_pass_is_refused_and_says_so():
    weight_format = CodebookFormat("nf4")
    tensors = weight_format.pack("m", codebook_weight(weight_format, 256, 256))
    moved = tensors["m.weight.absmax"].view(256, 4).T.bfloat16().contiguous()
    with pytest.raises(CheckpointError, match=r"bfloat16 \[4, 256\] .* after a forward pass"):
        weight_format.unpack("m", (tensors | {"m.weight.absmax": moved}).__getitem__)


@pytest.mark.parametrize(
    ("part", "tensor", "words"),
    [
        ("m.weight", torch.zeros(6, 64), r"codes float32 \[6, 64\]"),
        ("m.weight", torch.zeros(6, dtype=torch.int8), r"codes int8 \[6\]"),
        ("m.SCB", torch.zeros(5), r"SCB float32 \[5\] where float32 \[6\]"),
        ("m.SCB", torch.zeros(6, dtype=torch.float16), "SCB float16"),
        ("m.weight_format", torch.tensor(2, dtype=torch.uint8), "layout of an old GPU"),
        ("m.weight_format", torch.zeros(3), "layout of an old GPU"),
    ],
)
def test_int8_tensors_that_do_not_fit_are_refused(part, tensor, words):
    tensors = pack(Int8RowsFormat()) | {part: tensor}
    with pytest.raises(CheckpointError, match=words):
        Int8RowsFormat().unpack("m", tensors.__getitem__)
