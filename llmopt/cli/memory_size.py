"""Amounts of memory as people write them: 512MiB, 2GiB, 1.5GB, 4096.

Knows nothing about what the memory is for.
Law: a size that is understood is a positive whole number of bytes.
"""

import re

from llmopt.errors import UsageError

_UNITS = {
    "": 1,
    "B": 1,
    "KB": 10**3,
    "MB": 10**6,
    "GB": 10**9,
    "KIB": 2**10,
    "MIB": 2**20,
    "GIB": 2**30,
}


def parse_memory_size(option: str, text: str) -> int:
    """Bytes. Raises UsageError, which names the option."""
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([A-Za-z]*)\s*", text)
    unit = None if match is None else _UNITS.get(match[2].upper())
    num_bytes = 0 if match is None or unit is None else int(float(match[1]) * unit)
    if num_bytes < 1:
        raise UsageError(f"{option} is {text!r}", "Give a size like 512MiB or 2GiB.")
    return num_bytes
