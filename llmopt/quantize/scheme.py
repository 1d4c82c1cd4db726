"""The names of quantization schemes, such as `gptq-w4g64`, `nf4-dq` or `gguf-q4_k_m`.

Data only; knows nothing of how a scheme is carried out or stored.
Law: `parse_scheme(scheme.label)` is the scheme again.
"""

import difflib
import re
from dataclasses import dataclass
from typing import Literal, get_args

from llmopt.errors import QuantizationError
from llmopt.formats.quantized import QuantSpec

UniformMethod = Literal["rtn", "gptq", "qronos", "awq", "awq+gptq"]
FixedMethod = Literal["nf4", "fp4", "int8", "w8a16", "w8a8", "fp8"]
Method = Literal[UniformMethod, FixedMethod, "gguf"]

UNIFORM_METHODS: tuple[UniformMethod, ...] = get_args(UniformMethod)
FIXED_METHODS: tuple[FixedMethod, ...] = get_args(FixedMethod)
_UNIFORM = re.compile(r"w(?P<bits>\d+)(?:g(?P<group>\d+))?(?P<asymmetric>-asym)?")
_EXAMPLES = (
    "gptq-w4g64",
    "gptq-w4g64-asym",
    "qronos-w4g64-asym",
    "awq-w4g64-asym",
    "awq+gptq-w4g64-asym",
    "rtn-w8",
    "nf4",
    "nf4-dq",
    "fp4",
    "int8",
    "w8a16",
    "w8a8",
    "fp8",
    "gguf-q4_k_m",
)


@dataclass(frozen=True, slots=True)
class Scheme:
    """What the weights become, and who chooses the codes.

    spec: of the uniform methods only
    double_quant: whether the scales of nf4 or fp4 are quantized too
    mix: of gguf only: which block type each tensor gets, such as "q4_k_m"
    """

    method: Method
    spec: QuantSpec | None = None
    double_quant: bool = False
    mix: str | None = None

    def __post_init__(self) -> None:
        assert (self.spec is not None) == (self.method in UNIFORM_METHODS), "uniform: with a spec"
        assert (self.mix is not None) == (self.method == "gguf"), "gguf: with a mix"

    @property
    def label(self) -> str:
        """The scheme's name."""
        if self.spec is not None:
            return self.spec.label(self.method)
        if self.mix is not None:
            return f"gguf-{self.mix}"
        return f"{self.method}-dq" if self.double_quant else self.method

    @property
    def uses_gptq(self) -> bool:
        """Whether columns are rounded by GPTQ."""
        return self.method in ("gptq", "qronos", "awq+gptq")

    @property
    def uses_awq(self) -> bool:
        """Whether channels are scaled by AWQ first."""
        return self.method in ("awq", "awq+gptq")

    @property
    def needs_calibration(self) -> bool:
        """Whether the method looks at data."""
        return self.uses_gptq or self.uses_awq or self.method in ("w8a8", "gguf")


def parse_scheme(text: str) -> Scheme:
    """Read a scheme's name; `QuantizationError`, with similar ones, for what is none."""
    name = text.strip().lower()
    if name in FIXED_METHODS:
        return Scheme(FIXED_METHODS[FIXED_METHODS.index(name)])
    if name in ("nf4-dq", "fp4-dq"):
        return Scheme("nf4" if name == "nf4-dq" else "fp4", double_quant=True)
    if name.startswith("gguf-") and len(name) > len("gguf-"):
        return Scheme("gguf", mix=name.removeprefix("gguf-"))
    for method in UNIFORM_METHODS:
        found = _UNIFORM.fullmatch(name.removeprefix(f"{method}-"))
        if name.startswith(f"{method}-") and found:
            group = None if found["group"] is None else int(found["group"])
            return Scheme(method, QuantSpec(int(found["bits"]), group, not found["asymmetric"]))
    raise _unknown(text)


def parse_schemes(text: str) -> tuple[Scheme, ...]:
    """Read a comma-separated list; `QuantizationError` if it is empty or names one twice."""
    schemes = tuple(parse_scheme(part) for part in text.split(",") if part.strip())
    if not schemes:
        raise QuantizationError("no scheme was named", f"Name some, such as {_EXAMPLES[0]},nf4.")
    labels = [scheme.label for scheme in schemes]
    twice = [label for label in dict.fromkeys(labels) if labels.count(label) > 1]
    if twice:
        raise QuantizationError(f"{twice[0]} was asked for twice", "Name every scheme once.")
    return schemes


def _unknown(text: str) -> QuantizationError:
    name = text.strip().lower()
    begun = [example for example in _EXAMPLES if len(name) > 1 and example.startswith(name)]
    similar = begun[:3] or difflib.get_close_matches(name, _EXAMPLES, n=3, cutoff=0.4)
    return QuantizationError(
        f"{text!r} is no quantization scheme",
        f"Did you mean {' or '.join(similar)}?"
        if similar
        else f"Schemes look like {', '.join(_EXAMPLES)}.",
    )
