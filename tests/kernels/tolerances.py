"""How far a kernel may be from its float64 reference: one table for all kernels and all devices.

An output that sums n terms is rounded once to its dtype, which is relative to the output, and its
terms were rounded before, which is relative to them and grows like sqrt(n):

    |out - reference| <= rtol * |reference| + atol * sqrt(n) * magnitude

rtol is one unit in the last place: twice what one rounding can do, so that a sum which lies beside
a tie may go either way. atol is what rounding the operands to the dtype does to one term of
magnitude 1 (float32: what accumulating in float32 does). float32 needs products in full precision:
`tl.dot(..., input_precision="ieee")`. Nothing loosens this table: no environment, no device.
"""

import math

import torch

TOLERANCES: dict[torch.dtype, tuple[float, float]] = {  # dtype: (rtol, atol)
    torch.float32: (1e-5, 1e-6),
    torch.float16: (2**-10, 2**-11),
    torch.bfloat16: (2**-7, 2**-8),
}


def assert_close(
    out: torch.Tensor,
    reference: torch.Tensor,
    *,
    dtype: torch.dtype | None = None,
    num_terms: int = 1,
    magnitude: float = 1.0,
) -> None:
    """Hold every element of `out` against `reference`, which was computed in float64.

    dtype: the lowest precision that took part, if it is not that of `out`.
    num_terms: how many terms an element sums.
    magnitude: of a typical term.
    """
    assert out.shape == reference.shape
    rtol, atol = TOLERANCES[dtype or out.dtype]
    wide, reference = out.double().cpu(), reference.double().cpu()
    assert torch.isfinite(wide).all(), "not finite"
    allowed = rtol * reference.abs() + atol * math.sqrt(num_terms) * magnitude
    excess = ((wide - reference).abs() / allowed).max().item() if out.numel() else 0.0
    assert excess <= 1, (
        f"an element is {excess:.2f} times as far off as {dtype or out.dtype} may be"
    )
