"""Conditions on rows as text: "load=c16", "target=gptq*", "kld<0.05".

Knows nothing about tables. The law: a row whose value is not known meets no condition on it but
`!=`.
"""

import operator
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from types import MappingProxyType

from llmopt.errors import UsageError
from llmopt.report.columns import load_text
from llmopt.report.measures import MEASURES
from llmopt.report.rows import Row

_TERM = re.compile(r"\s*(?P<name>\w+)\s*(?P<sign><=|>=|!=|=|<|>)\s*(?P<value>.*?)\s*")
_NUMBERS: Mapping[str, Callable[[float, float], bool]] = MappingProxyType(
    {
        "<": operator.lt,
        "<=": operator.le,
        ">": operator.gt,
        ">=": operator.ge,
        "=": operator.eq,
        "!=": operator.ne,
    }
)
_TEXTS: Mapping[str, Callable[[Row], str]] = MappingProxyType(
    {
        "target": lambda row: row.target,
        "load": lambda row: load_name(row),
        "backend": lambda row: row.backend.partition(" ")[0],
        "recipe": lambda row: row.recipe,
        "machine": lambda row: row.machine,
        "status": lambda row: row.status,
        "scheme": lambda row: row.model.scheme if row.model else "",
    }
)


@dataclass(frozen=True, slots=True)
class Condition:
    """A name, a sign and what stands behind it; `number` if the name is that of a measure."""

    name: str
    sign: str
    text: str
    number: float | None = None

    def holds(self, row: Row) -> bool:
        """Whether a row meets the condition."""
        if self.number is not None:
            estimate = MEASURES[self.name].of(row)
            if estimate is None:
                return self.sign == "!="
            return _NUMBERS[self.sign](estimate.value, self.number)
        matches = fnmatchcase(_TEXTS[self.name](row).lower(), self.text.lower())
        return matches == (self.sign == "=")


def parse_condition(text: str) -> Condition:
    """Read a condition. Texts take `=` and `!=` with `*` and `?`; measures take numbers.

    Raises UsageError for an unknown name, a sign that makes no sense, or what is no number.
    """
    found = _TERM.fullmatch(text)
    if found is None:
        raise UsageError(f"{text!r} is no condition", "Write such as load=c16 or kld<0.05.")
    name, sign, value = found["name"], found["sign"], found["value"]
    if name in _TEXTS:
        if sign not in ("=", "!="):
            raise UsageError(f"{name} is a text, so {sign} makes no sense", "Use = or !=.")
        return Condition(name, sign, value)
    if name not in MEASURES:
        names = ", ".join([*_TEXTS, *MEASURES])
        raise UsageError(f"There is nothing named {name!r} to filter by", f"Known are {names}.")
    try:
        return Condition(name, sign, value, float(value))
    except ValueError:
        raise UsageError(f"{value!r} is no number", f"Write such as {name}{sign}1.5.") from None


def load_name(row: Row) -> str:
    """Return "c16" for a closed loop, the rate "4/s" of an open one, "none" for quality only."""
    if row.load is None:
        return "none"
    text = load_text(row.load)
    return f"c{text}" if row.load.kind == "closed" else text
