"""Whether what a contender computed is what the reference defines.

Knows nothing of kernels. The law: the tolerances of our kernels are those of the tests, one table
for both (`tests/kernels/tolerances.py`), and nothing here loosens them. Others round as they like:
they are held by the norm of their error, which finds a wrong layout or scale; and so are products
whose inputs are rounded to 8 bits where the definition does not round them.
"""

import importlib.util
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import torch

_TABLE = Path(__file__).parents[2] / "tests" / "kernels" / "tolerances.py"
NORM_ERROR = 2.0**-6  # relative, in the norm
_MAX_ROWS = 256

Check = Callable[[Any], str | None]  # what is wrong with an output, or None


def closeness_problem(
    out: torch.Tensor,
    reference: torch.Tensor,
    *,
    dtype: torch.dtype | None = None,
    num_terms: int = 1,
    magnitude: float = 1.0,
) -> str | None:
    """What the tests would say of `out`; arguments as of `assert_close`."""
    if out.shape != reference.shape:
        return f"shape {tuple(out.shape)}, not {tuple(reference.shape)}"
    try:
        _assert_close()(out, reference, dtype=dtype, num_terms=num_terms, magnitude=magnitude)
    except AssertionError as error:
        return str(error).splitlines()[0]
    return None


def checked_rows(num_rows: int, device: torch.device) -> torch.Tensor:
    """The rows of a large output that are held against the definition: all, or 256 of them, evenly
    spread from the first to the last. int64.
    """
    if num_rows <= _MAX_ROWS:
        return torch.arange(num_rows, device=device)
    return torch.linspace(0, num_rows - 1, _MAX_ROWS, dtype=torch.float64, device=device).long()


def norm_problem(out: torch.Tensor, reference: torch.Tensor) -> str | None:
    """Whether the norm of the error is more than `NORM_ERROR` times that of the reference."""
    if out.shape != reference.shape:
        return f"shape {tuple(out.shape)}, not {tuple(reference.shape)}"
    wide, exact = out.double(), reference.double()
    error = ((wide - exact).norm() / exact.norm()).item()
    return None if error <= NORM_ERROR else f"the error is {error:.3g} of the output"


def rounding_problem(
    out: tuple[torch.Tensor, torch.Tensor],
    expected: tuple[torch.Tensor, torch.Tensor],
    *,
    max_steps: int = 1,
) -> str | None:
    """Codes and scales of tokens that were rounded to 8 bits: where values before the rounding may
    differ by one unit in the last place of bfloat16, codes may differ by one step, and scales by
    that unit, for each step.
    """
    (codes, scales), (expected_codes, expected_scales) = out, expected
    if codes.dtype != expected_codes.dtype:
        return f"codes are {codes.dtype}, not {expected_codes.dtype}"
    unit = torch.finfo(torch.bfloat16).eps
    if not ((scales - expected_scales).abs() <= max_steps * unit * expected_scales).all():
        return "a scale is not that of the token"
    if codes.dtype == torch.int8:
        steps = (codes.int() - expected_codes.int()).abs().max().item()
    else:
        steps = (_order(codes) - _order(expected_codes)).abs().max().item()
    return None if steps <= max_steps else f"a code is {steps} steps off"


def _order(codes: torch.Tensor) -> torch.Tensor:
    """e4m3 values as integers in their order."""
    bits = codes.view(torch.uint8).int()
    return torch.where(bits < 128, bits, 128 - bits)


@cache
def _assert_close() -> Callable[..., None]:
    spec = importlib.util.spec_from_file_location("kernel_tolerances", _TABLE)
    assert spec is not None, "the tests are part of a checkout"
    assert spec.loader is not None, "it is a file of Python"
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    check: Callable[..., None] = module.assert_close
    return check
