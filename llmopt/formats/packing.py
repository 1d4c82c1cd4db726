"""Packing of b-bit codes into 32-bit words along a dimension, lowest bits first.

This is the layout of GPTQ's and compressed-tensors' codes and zero points: 32 consecutive codes
fill exactly b words, so 2-, 4- and 8-bit codes never straddle a word, and 3-bit codes do at
elements 10 and 21. AWQ packs 4-bit codes the same way after shuffling them. Pure functions on
integer tensors.
"""

import torch
import torch.nn.functional as F

_RUN = 32  # codes that fill a whole number of words, whatever their width


def pack_words(codes: torch.Tensor, bits: int) -> torch.Tensor:
    """Pack uint8 codes [R, C] along R into int32 words [R * bits / 32, C]. R codes must fill whole
    words.
    """
    rows, columns = codes.shape
    assert rows * bits % 32 == 0, "the codes fill a whole number of words"
    wide = F.pad(codes.to(torch.int64), (0, 0, 0, -rows % _RUN)).view(-1, _RUN, columns)
    words = torch.zeros(len(wide), bits, columns, dtype=torch.int64, device=codes.device)
    for element in range(_RUN):
        word, shift = divmod(element * bits, 32)
        words[:, word] |= (wide[:, element] << shift) & 0xFFFFFFFF
        if shift + bits > 32:
            words[:, word + 1] |= wide[:, element] >> (32 - shift)
    signed = torch.where(words >= 1 << 31, words - (1 << 32), words)
    return signed.to(torch.int32).view(-1, columns)[: rows * bits // 32]


def unpack_words(words: torch.Tensor, bits: int) -> torch.Tensor:
    """Invert `pack_words`: int32 words [W, C] to the uint8 codes [W * 32 // bits, C] that fit in
    them.
    """
    num_words, columns = words.shape
    wide = F.pad(words.to(torch.int64) & 0xFFFFFFFF, (0, 0, 0, -num_words % bits))
    wide = wide.view(-1, bits, columns)
    codes = torch.empty(len(wide), _RUN, columns, dtype=torch.uint8, device=words.device)
    mask = (1 << bits) - 1
    for element in range(_RUN):
        word, shift = divmod(element * bits, 32)
        value = wide[:, word] >> shift
        if shift + bits > 32:
            value = value | (wide[:, word + 1] << (32 - shift))
        codes[:, element] = (value & mask).to(torch.uint8)
    return codes.view(-1, columns)[: num_words * 32 // bits]
