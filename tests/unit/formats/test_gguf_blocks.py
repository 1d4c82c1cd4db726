import gguf
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from llmopt.errors import QuantizationError
from llmopt.formats.gguf_blocks import GGML_TYPES, GgufWeight, ggml_type
from llmopt.formats.gguf_layouts import LAYOUTS, Planes

ALL_TYPES = pytest.mark.parametrize("name", GGML_TYPES)
BLOCK_TYPES = pytest.mark.parametrize("name", LAYOUTS)


def random_weight(name: str, rows: int = 8, columns: int = 512, seed: int = 0) -> GgufWeight:
    """Random bytes: every bit pattern is a block, though its scales may be NaN or infinite."""
    found = GGML_TYPES[name]
    data = np.random.default_rng(seed).integers(0, 256, (rows, found.row_bytes(columns)), np.uint8)
    return GgufWeight(torch.from_numpy(data), found, (rows, columns))


@ALL_TYPES
def test_the_table_agrees_with_the_gguf_package(name: str) -> None:
    found = GGML_TYPES[name]
    theirs = gguf.GGMLQuantizationType(found.id)
    assert theirs.name.lower() == name
    assert gguf.GGML_QUANT_SIZES[theirs] == (found.block_elements, found.block_bytes)


@ALL_TYPES
def test_values_are_bit_for_bit_those_of_the_gguf_package(name: str) -> None:
    weight = random_weight(name)
    with np.errstate(all="ignore"):
        expected = gguf.quants.dequantize(
            weight.blocks.numpy(), gguf.GGMLQuantizationType(weight.type.id)
        )
    ours = weight.dequantize().numpy()
    assert ours.shape == weight.shape
    same_bits = ours.view(np.uint32) == np.ascontiguousarray(expected).view(np.uint32)
    assert (same_bits | (np.isnan(ours) & np.isnan(expected))).all()


@BLOCK_TYPES
@given(seed=st.integers(0, 2**32 - 1))
@settings(max_examples=10, deadline=None)
def test_packing_inverts_unpacking(name: str, seed: int) -> None:
    layout = LAYOUTS[name]
    blocks = random_weight(name, seed=seed).blocks.view(-1, layout.num_bytes)
    assert torch.equal(layout.pack(layout.unpack(blocks)), blocks)


@pytest.mark.parametrize(("bits", "run"), [(1, 1), (1, 32), (2, 32), (4, 16), (8, 32)])
def test_planes_are_runs_of_codes_in_rising_bits(bits: int, run: int) -> None:
    codes = torch.randint(0, 1 << bits, (3, 2 * run * 8 // bits), dtype=torch.uint8)
    packed = Planes(bits, run).pack(codes)
    per_run = run * 8 // bits
    for element, code in enumerate(codes[1].tolist()):
        chunk, inside = divmod(element, per_run)
        plane, byte = divmod(inside, run)
        stored = int(packed[1, chunk * run + byte])
        assert (stored >> (plane * bits)) & ((1 << bits) - 1) == code


def slow_q4_k(block: bytes) -> list[float]:
    """One q4_k block, element by element, as ggml describes it."""
    scale, offset = np.frombuffer(block[:4], np.float16).astype(np.float32)
    sub, low = block[4:16], block[16:]
    values = []
    for element in range(256):
        j = element // 32
        if j < 4:
            k, m = sub[j] & 63, sub[j + 4] & 63
        else:
            k = (sub[j + 4] & 15) | (sub[j - 4] >> 6 << 4)
            m = (sub[j + 4] >> 4) | (sub[j] >> 6 << 4)
        byte = low[element // 64 * 32 + element % 32]
        code = byte >> 4 if element % 64 >= 32 else byte & 15
        values.append(float(scale * np.float32(k) * np.float32(code) - offset * np.float32(m)))
    return values


def test_q4_k_is_what_its_description_says() -> None:
    data = np.random.default_rng(1).integers(0, 256, (1, 144), np.uint8)
    data[0, :4] = np.array([0.37, 0.021], np.float16).view(np.uint8)
    weight = GgufWeight(torch.from_numpy(data), GGML_TYPES["q4_k"], (1, 256))
    assert weight.dequantize()[0].tolist() == slow_q4_k(data.tobytes())


def test_values_are_rounded_once_to_the_wanted_dtype() -> None:
    weight = GgufWeight(torch.zeros(2, 36, dtype=torch.uint8), GGML_TYPES["q4_0"], (2, 64))
    half = weight.dequantize(torch.bfloat16)
    assert half.dtype == torch.bfloat16
    assert half.shape == (2, 64)
    assert weight.to(torch.device("cpu")).label == "q4_0"


def test_types_are_found_by_name() -> None:
    assert ggml_type("Q4_K") is ggml_type("q4_k") is GGML_TYPES["q4_k"]
    assert ggml_type("q4_k").bits_per_weight == 4.5
    assert ggml_type("q6_k").bits_per_weight == 6.5625
    with pytest.raises(QuantizationError, match="q9_k"):
        ggml_type("q9_k")


def test_rows_are_whole_blocks() -> None:
    assert not ggml_type("q4_k").fits(576)
    with pytest.raises(QuantizationError, match=r"576.*256"):
        ggml_type("q4_k").row_bytes(576)
