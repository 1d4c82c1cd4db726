"""Student's t distribution: tails and quantiles at any level, as a correction for many tests needs.

Knows nothing about what was sampled; imports no numpy, as the report needs it. Degrees of freedom
are whole numbers.
"""

import math
from functools import cache
from statistics import NormalDist

_EXACT_DEGREES = 1000  # above, the Cornish-Fisher expansion is as exact as anyone reads


def upper_tail(t: float, degrees: int) -> float:
    """P(T > t), by the finite series of Abramowitz & Stegun, 26.7.3 and 26.7.4.

    Exact up to rounding, which leaves an absolute error of about 1e-15.
    """
    assert degrees >= 1, "a spread needs two values"
    if math.isinf(t):
        return 0.0 if t > 0 else 1.0
    angle = math.atan(abs(t) / math.sqrt(degrees))
    sine, cosine = math.sin(angle), math.cos(angle)
    is_odd = degrees % 2 == 1
    term = cosine if is_odd else 1.0
    total = 0.0
    for k in range(3 if is_odd else 2, degrees + 1, 2):
        total += term
        term *= cosine**2 * (k - 1) / k
    within = 2 / math.pi * (angle + sine * total) if is_odd else sine * total
    tail = max(0.0, (1 - within) / 2)
    return tail if t >= 0 else 1 - tail


@cache
def upper_quantile(tail: float, degrees: int) -> float:
    """The t with P(T > t) = `tail`, for a tail between 1e-9 and 0.5."""
    assert degrees >= 1, "a spread needs two values"
    assert 1e-9 <= tail <= 0.5, "beyond, the series has no digits left"
    if degrees > _EXACT_DEGREES:
        z = NormalDist().inv_cdf(1 - tail)
        return z + (z**3 + z) / (4 * degrees) + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * degrees**2)
    low, high = 0.0, 1.0
    while upper_tail(high, degrees) > tail:
        high *= 2
    for _ in range(80):
        middle = (low + high) / 2
        low, high = (middle, high) if upper_tail(middle, degrees) > tail else (low, middle)
    return high
