import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from llmopt.formats.packing import pack_words, unpack_words


def bits_of(codes: torch.Tensor, bits: int) -> list[str]:
    """Independent packing: concatenate the binary digits, lowest first, and cut into words."""
    columns = []
    for column in codes.T.tolist():
        stream = "".join(format(code, f"0{bits}b")[::-1] for code in column)
        words = [stream[i : i + 32][::-1] for i in range(0, len(stream), 32)]
        columns.append([int(np.uint32(int(word, 2)).astype(np.int32)) for word in words])
    return columns


@given(
    bits=st.sampled_from([2, 3, 4, 8]),
    words=st.integers(1, 12),
    columns=st.integers(1, 4),
    seed=st.integers(0, 2**16),
)
def test_packing_is_the_bit_stream_and_is_inverted(bits, words, columns, seed):
    generator = torch.Generator().manual_seed(seed)
    rows = 32 * words if bits == 3 else 32 * words // bits  # whatever fills whole words
    codes = torch.randint(0, 1 << bits, (rows, columns), generator=generator)
    codes = codes.to(torch.uint8)
    packed = pack_words(codes, bits)
    assert packed.dtype == torch.int32
    assert packed.T.tolist() == bits_of(codes, bits)
    assert torch.equal(unpack_words(packed, bits), codes)


def test_symmetric_zero_points_have_the_well_known_words():
    stored = torch.full((32, 1), 7, dtype=torch.uint8)
    assert pack_words(stored, 4)[0].item() == 2004318071  # 0x77777777


def test_incomplete_runs_are_a_bug_of_the_caller():
    with pytest.raises(AssertionError, match="whole number of words"):
        pack_words(torch.zeros(30, 1, dtype=torch.uint8), 4)
