"""Why a quantized cell is, or is not, faster than its base, in one line.

Knows nothing about layout, backends or clocks; compares two attributions. The laws: no claim
without its number, and claims come in the order of what they explain.

What is to be explained: if all of the base's time per output token shrank as the bytes of the
linear layers do, the speed-up would be the ratio R of those bytes. The part p misses that by
cell_p - base_p / R seconds per token, and these sum to what is missing in all.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from llmopt.results.attribution import Attribution, PartName
from llmopt.results.schema import CostModel, ModelFacts

MIN_SAVING = 1.02  # ratio of bytes below which nothing was saved
MIN_SHARE = 0.10  # of what is missing: less is not worth a word
MAX_CLAIMS = 3
_HOST: tuple[PartName, ...] = ("sampling", "drafting", "scheduling", "update", "unattributed")


@dataclass(frozen=True, slots=True)
class Subject:
    """A cell that is compared: where its time went, what was served, what a token costs."""

    attribution: Attribution
    model: ModelFacts
    cost: CostModel


@dataclass(frozen=True, slots=True)
class Comparison:
    """A cell and its base under one load; times are seconds per output token."""

    cell: Subject
    base: Subject

    @property
    def byte_ratio(self) -> float:
        """R: bytes of the base's linear layers / of the cell's; of all weights where the lm_head's
        are not known apart.
        """
        return self.base.attribution.linear_bytes / self.cell.attribution.linear_bytes

    @property
    def missing_s(self) -> float:
        """What the cell takes longer than the ratio of the bytes allows."""
        cell, base = self.cell.attribution, self.base.attribution
        return _per_token(cell, cell.wall_s) - _per_token(base, base.wall_s) / self.byte_ratio

    def missed_s(self, *names: PartName) -> float:
        """The share that these parts have in it; negative if they shrank by more."""
        cell, base = self.cell.attribution, self.base.attribution
        of_cell, of_base = cell.seconds(*names), base.seconds(*names)
        return _per_token(cell, of_cell) - _per_token(base, of_base) / self.byte_ratio


@dataclass(frozen=True, slots=True)
class Claim:
    """One reason, and the seconds per token that it explains."""

    seconds: float
    text: str


Rule = Callable[[Comparison], Claim | None]


@dataclass(frozen=True, slots=True)
class Explanation:
    """Why a cell is as fast as it is; its text is one line such as "1.85x of the 3.67x that the
    bytes of its linear layers allow: lm_head is 49 % of the weights' bytes and stays in 16 bits
    (55 % of what is missing)".

    speedup: ratio of the output throughputs, cell / base
    allowed: the ratio of the bytes of their linear layers; None: the cell saves none
    reasons: what is missing, most first
    """

    speedup: float
    allowed: float | None
    reasons: tuple[str, ...]

    @property
    def is_above(self) -> bool:
        """Is it more than the bytes allow, because the base is further from its own roofline?"""
        return self.allowed is not None and self.speedup > self.allowed

    def __str__(self) -> str:
        """Return the line."""
        text = f"{self.speedup:.2f}x"
        if self.allowed is not None:
            text += f" of the {self.allowed:.2f}x that the bytes of its linear layers allow"
        return f"{text}: {'; '.join(self.reasons)}" if self.reasons else text


def explain(cell: Subject, base: Subject, speedup: float) -> Explanation | None:
    """Explain a cell's `speedup`; None if no token came out of one of them."""
    if not cell.attribution.num_output_tokens or not base.attribution.num_output_tokens:
        return None
    comparison = Comparison(cell, base)
    ratio = comparison.byte_ratio
    if ratio < MIN_SAVING:
        return Explanation(speedup, None, (unsaved_bytes(comparison),))
    return Explanation(speedup, ratio, () if speedup > ratio else tuple(_claims(comparison)))


def _claims(comparison: Comparison) -> Iterator[str]:
    """The claims that explain most, most first, each with its share."""
    missing_s = comparison.missing_s
    if missing_s <= 0:
        return
    found = [claim for rule in RULES if (claim := rule(comparison)) is not None]
    found.sort(key=lambda claim: claim.seconds, reverse=True)
    for place, claim in enumerate(found[:MAX_CLAIMS]):
        share = claim.seconds / missing_s
        if share >= MIN_SHARE:
            of = " of what is missing" if place == 0 else ""
            yield f"{claim.text} ({_percent(share)}{of})"


def unsaved_bytes(comparison: Comparison) -> str:
    """Why no bytes were saved, or by how much there are more."""
    cell, base = comparison.cell, comparison.base
    read, of_base = _weight_bytes(cell), _weight_bytes(base)
    bytes_text = f"a step reads {_megabytes(read)} MB of weights, the base {_megabytes(of_base)} MB"
    if any(kernel.startswith("dequantized") for kernel in cell.model.kernels):
        return f"its weights are dequantized to {cell.model.compute_dtype} at load: {bytes_text}"
    return f"no bytes are saved: {bytes_text}"


def lm_head(comparison: Comparison) -> Claim | None:
    """The output head, where it shrank less than the layers did."""
    cell, base = comparison.cell, comparison.base
    head_bytes, of_base = cell.attribution.lm_head_bytes, base.attribution.lm_head_bytes
    if head_bytes is None or of_base is None or not cell.cost.flops_lm_head:
        return None
    share = head_bytes / _weight_bytes(cell)
    bits = 8 * head_bytes / (cell.cost.flops_lm_head / 2)  # 2 FLOPs per weight
    verb = "stays" if head_bytes * MIN_SAVING >= of_base else "is"
    text = f"lm_head is {_percent(share)} of the weights' bytes and {verb} in {bits:.2g} bits"
    return Claim(comparison.missed_s("lm_head"), text)


def compute_bound(comparison: Comparison) -> Claim | None:
    """Linear layers whose FLOPs take longer than their bytes: fewer bytes do not help."""
    cell = comparison.cell.attribution
    if cell.matmul_tokens is None or cell.seconds("matmul") <= cell.seconds("weights"):
        return None
    text = (
        f"compute-bound: FLOPs of the linear layers need {_percent(cell.share('matmul'))} of the "
        f"time whatever their bytes, most of it in steps of {cell.matmul_tokens:.0f} tokens"
    )
    return Claim(comparison.missed_s("weights", "matmul"), text)


def prompt_operators(comparison: Comparison) -> Claim | None:
    """What forward passes take above their roofline in steps that compute prompts."""
    cell, base = comparison.cell.attribution, comparison.base.attribution
    return _above_roofline(
        comparison, cell.prompt_operators_s, base.prompt_operators_s, "in steps with prompts "
    )


def decode_operators(comparison: Comparison) -> Claim | None:
    """What forward passes take above their roofline in the other steps."""
    cell, base = comparison.cell.attribution, comparison.base.attribution
    return _above_roofline(
        comparison,
        cell.seconds("operators") - cell.prompt_operators_s,
        base.seconds("operators") - base.prompt_operators_s,
        "in decode steps ",
    )


def _above_roofline(
    comparison: Comparison, cell_s: float, base_s: float, where: str
) -> Claim | None:
    """A claim on kernels and operators that took `cell_s` and `base_s` above the roofline."""
    cell, base = comparison.cell.attribution, comparison.base.attribution
    own, of_base = _per_token(cell, cell_s), _per_token(base, base_s)
    numbers = f"{_ms(own)} ms per token above the roofline, the base's {_ms(of_base)} ms"
    saved = max(
        0.0,
        _per_token(base, base.seconds("weights", "matmul"))
        - _per_token(cell, cell.seconds("weights", "matmul")),
    )
    if own - of_base > saved and _is_quantized(comparison.cell.model):
        text = (
            f"dequantization costs more than the {_ms(saved)} ms that fewer bytes save: "
            f"{where}kernels are {numbers}"
        )
    elif own > of_base:
        text = f"{where}its kernels are slower: {numbers}"
    else:
        share = _percent(cell_s / cell.wall_s)
        text = f"{where}kernels and small operators take {share} of the time: {numbers}"
    return Claim(own - of_base / comparison.byte_ratio, text)


def attention(comparison: Comparison) -> Claim | None:
    """Attention and its cache, which the scheme of the weights does not change."""
    share = comparison.cell.attribution.share("kv", "attention")
    text = f"attention and its cache need {_percent(share)} of the time"
    return Claim(comparison.missed_s("kv", "attention"), text)


def host(comparison: Comparison) -> Claim | None:
    """What happens around the forward passes."""
    share = comparison.cell.attribution.share(*_HOST)
    text = f"sampling, scheduling and Python take {_percent(share)} of the time"
    return Claim(comparison.missed_s(*_HOST), text)


def load(comparison: Comparison) -> Claim | None:
    """Time in which nothing was there to be computed."""
    share = comparison.cell.attribution.share("client", "idle")
    text = f"no request is in flight for {_percent(share)} of the time"
    return Claim(comparison.missed_s("client", "idle"), text)


RULES: tuple[Rule, ...] = (
    lm_head,
    compute_bound,
    prompt_operators,
    decode_operators,
    attention,
    host,
    load,
)


def _weight_bytes(subject: Subject) -> float:
    return subject.attribution.linear_bytes + (subject.attribution.lm_head_bytes or 0.0)


def _is_quantized(model: ModelFacts) -> bool:
    return any(kernel != "dense" for kernel in model.kernels)


def _per_token(attribution: Attribution, seconds: float) -> float:
    return seconds / attribution.num_output_tokens


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %"


def _ms(seconds: float) -> str:
    """Milliseconds with two digits at least, all before the point kept."""
    value = 1000 * seconds
    return f"{value:.{2 if value < 0.995 else 1 if value < 9.95 else 0}f}"


def _megabytes(num_bytes: float) -> str:
    return f"{num_bytes / 1e6:.0f}"
