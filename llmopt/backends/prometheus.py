"""Samples out of a page in Prometheus' text exposition format, version 0.0.4.

Source: https://prometheus.io/docs/instrumenting/exposition_formats/. Knows nothing about which
samples mean what. The law: a sample counts once, whatever its labels are.
"""

import math
import re
from collections.abc import Mapping

# name, then labels in braces with quoted values (a quote inside is escaped), then the value
_SAMPLE = re.compile(
    r'^([a-zA-Z_:][a-zA-Z0-9_:]*)(?:\{(?:[^"}]|"(?:[^"\\]|\\.)*")*\})?[ \t]+(\S+)(?:[ \t]+-?\d+)?$'
)


def read_samples(page: str, names: Mapping[str, str]) -> dict[str, float]:
    """The samples of `names`, by the names that they get; those of other labels are added up.

    Lines that are no samples, and values that are not finite, are left out.
    """
    found: dict[str, float] = {}
    for line in page.split("\n"):
        sample = _SAMPLE.match(line.strip())
        if sample is None or sample[1] not in names:
            continue
        try:
            value = float(sample[2])
        except ValueError:
            continue
        if math.isfinite(value):
            name = names[sample[1]]
            found[name] = found.get(name, 0.0) + value
    return found
