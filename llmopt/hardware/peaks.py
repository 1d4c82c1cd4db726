"""Peak rates of known accelerators, from their data sheets.

Knows nothing about this machine. The law: dense rates only (never "with sparsity"), and an unknown
device has no peak rather than a guessed one.

Source: vendors' data sheets, as collected by nanochat and torchtitan (both agree on these rows).
"""

import re
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Peak:
    """What the data sheet promises."""

    bf16_flops: float  # FLOP/s of dense bfloat16 matrix products
    memory_bytes_per_s: float

    def flops(self, dtype: str) -> float | None:
        """FLOP/s of matrix products in a dtype; None for one that the table does not have."""
        return self.bf16_flops if dtype in _SIXTEEN_BITS else None


# (all words that the device's name must have, TFLOP/s, TB/s); the first row that fits counts
_TABLE: tuple[tuple[str, float, float], ...] = (
    ("GB200", 2500, 8.0),
    ("B200", 2250, 8.0),
    ("B100", 1800, 8.0),
    ("H200 NVL", 836, 4.8),
    ("H200", 989, 4.8),
    ("H100 NVL", 835, 3.9),
    ("H100 PCIe", 756, 2.0),
    ("H100", 989, 3.35),
    ("A100 40GB", 312, 1.6),
    ("A100", 312, 2.0),
    ("A40", 149.7, 0.696),
    ("A30", 165, 0.933),
    ("L40S", 362, 0.864),
    ("L4", 121, 0.300),
    ("RTX 5090", 209.5, 1.79),
    ("RTX 4090", 165.2, 1.01),
    ("RTX 3090", 71, 0.936),
    ("MI300X", 1307, 5.3),
    ("MI325X", 1307, 6.0),
    ("MI355X", 2500, 8.0),
)
_SIXTEEN_BITS = {"bfloat16", "float16"}  # one rate for both on all of these devices
_OTHER_CHIPS = {"LAPTOP", "MAX", "MOBILE", "D", "TI"}  # same number, smaller or larger chip


def find_peak(device_name: str) -> Peak | None:
    """The data-sheet peak of a device, by the name that its driver gives; None if unknown."""
    words = set(re.split(r"[\s\-_/()]+", device_name.upper()))
    if words & _OTHER_CHIPS:
        return None
    for row, tera_flops, tera_bytes in _TABLE:
        if set(row.upper().split()) <= words:
            return Peak(tera_flops * 1e12, tera_bytes * 1e12)
    return None
