"""Scales that every engine reads alike.

GPTQ checkpoints store float16 scales, but an engine that computes in bfloat16 rounds them again,
and then runs other weights than the ones that were calibrated. Scales chosen from the values that
both types hold exactly do not have this problem, and a group's codes are chosen after the scale,
so nothing is lost.
"""

import torch

SMALLEST_SCALE = 2.0**-24


def round_scales(scales: torch.Tensor) -> torch.Tensor:
    """Round positive scales to values that float16 and bfloat16 both represent exactly.

    Rounding to bfloat16 leaves 8 significant bits, and the float16 rounding that follows can only
    drop more of them (below 2^-14), so the result is exact in both. Scales that would vanish become
    the smallest positive float16 (2^-24); scales beyond float16's range are clamped to its largest
    bfloat16 value.
    """
    largest = 65280.0  # 255 * 2^8: the largest float16 value with 8 significant bits
    rounded = scales.float().clamp(SMALLEST_SCALE, largest).to(torch.bfloat16).to(torch.float16)
    return rounded.clamp_max(largest)
