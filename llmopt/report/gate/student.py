"""Student's t distribution: tails and quantiles at any level, as a correction for many tests needs.

Knows nothing about what was sampled; imports no numpy. Degrees of freedom are whole numbers.
"""

import math
from functools import cache


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
    assert 1e-9 <= tail <= 0.5, "beyond, the series has no digits left"
    low, high = 0.0, 1.0
    while upper_tail(high, degrees) > tail:
        high *= 2
    for _ in range(80):
        middle = (low + high) / 2
        low, high = (middle, high) if upper_tail(middle, degrees) > tail else (low, middle)
    return high
