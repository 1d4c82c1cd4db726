"""Packing of b-bit codes into 32-bit words along a dimension, lowest bits first.

This is the layout that GPTQ checkpoints use for `qweight` (along the rows) and `qzeros` (along the
columns): 32 consecutive codes fill exactly b words, so 2-, 4- and 8-bit codes never straddle a
word, and 3-bit codes do at elements 10 and 21. Pure functions on integer tensors.
"""

import torch


def pack_words(codes: torch.Tensor, bits: int) -> torch.Tensor:
    """Pack uint8 codes [R, C] along R into int32 words [R * bits / 32, C]. R must be a multiple of
    32.
    """
    rows, columns = codes.shape
    assert rows % 32 == 0, "32 codes fill a whole number of words"
    wide = codes.to(torch.int64).view(rows // 32, 32, columns)
    words = torch.zeros(rows // 32, bits, columns, dtype=torch.int64, device=codes.device)
    for element in range(32):
        word, shift = divmod(element * bits, 32)
        words[:, word] |= (wide[:, element] << shift) & 0xFFFFFFFF
        if shift + bits > 32:
            words[:, word + 1] |= wide[:, element] >> (32 - shift)
    signed = torch.where(words >= 1 << 31, words - (1 << 32), words)
    return signed.to(torch.int32).view(rows // 32 * bits, columns)


def unpack_words(words: torch.Tensor, bits: int) -> torch.Tensor:
    """Invert `pack_words`: int32 words [W, C] to uint8 codes [W * 32 / bits, C]. W must be a
    multiple of `bits`.
    """
    num_words, columns = words.shape
    assert num_words % bits == 0, "a whole number of runs of 32 codes"
    wide = (words.to(torch.int64) & 0xFFFFFFFF).view(num_words // bits, bits, columns)
    codes = torch.empty(num_words // bits, 32, columns, dtype=torch.uint8, device=words.device)
    mask = (1 << bits) - 1
    for element in range(32):
        word, shift = divmod(element * bits, 32)
        value = wide[:, word] >> shift
        if shift + bits > 32:
            value = value | (wide[:, word + 1] << (32 - shift))
        codes[:, element] = (value & mask).to(torch.uint8)
    return codes.view(num_words // bits * 32, columns)
