"""The README.md of a quantized checkpoint: what was done to which model, measured, and how to run.

A pure function from facts to Markdown; reads no weights and runs nothing. Law: it says nothing that
it has no number or record for, and whatever a user or a model wrote is escaped.
"""

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean

import yaml

from llmopt.formats.portability import Verdict
from llmopt.quantize.model_card_usage import usage
from llmopt.quantize.options import ModuleRecord

WORST = 5  # modules in the list of the worst
_LICENSE_KEYS = ("license", "license_name", "license_link")
_BLOCK = re.compile(r"\.(\d+)\.")


@dataclass(frozen=True, slots=True)
class CalibrationFacts:
    """The text that the quantizer looked at. findings: what the linter said, a line each."""

    source: str
    text_sha256: str
    num_samples: int
    sample_tokens: int
    seed: int
    findings: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class SmokeTest:
    """What the written checkpoint was seen to generate, greedily."""

    prompt: str
    text: str


@dataclass(frozen=True, slots=True)
class CardFacts:
    """Everything that a model card says.

    name: of the output directory or file; base_model: hub id or directory name of the source
    license: front matter of the source's card (`source_license`)
    scheme: such as "gptq-w4g64"; format: such as "gptq" or "gguf"
    bits_per_weight: of the quantized layers on disk
    source_bytes, file_bytes: of all weight files, before and after
    damping: the share of the mean Hessian diagonal that was asked for, or None
    command: that makes the same checkpoint again; version: of llmopt
    seconds: that it took; None keeps the card the same for the same inputs
    """

    name: str
    base_model: str
    method: str
    scheme: str
    format: str
    bits_per_weight: float
    source_bytes: int
    file_bytes: int
    source_sha256: str
    command: str
    version: str
    modules: tuple[ModuleRecord, ...]
    verdicts: tuple[Verdict, ...] = ()
    calibration: CalibrationFacts | None = None
    damping: float | None = None
    smoke: SmokeTest | None = None
    license: Mapping[str, str] = field(default_factory=dict)
    seconds: float | None = None


def model_card(facts: CardFacts) -> str:
    """The card as Markdown with the front matter that model hubs read."""
    sections = [
        _front_matter(facts),
        _summary(facts),
        _calibration(facts.calibration),
        _losses(facts),
        _damping(facts),
        _portability(facts.verdicts),
        _usage(facts),
        _smoke(facts.smoke),
        _reproduction(facts),
    ]
    return "\n".join(section for section in sections if section)


def source_license(directory: Path) -> dict[str, str]:
    """The license keys in the front matter of a model directory's README.md; {} without one."""
    try:
        text = (directory / "README.md").read_text(encoding="utf-8")
    except (OSError, ValueError):
        return {}
    match = re.match(r"---\n(.*?)\n---\s*(?:\n|$)", text.replace("\r\n", "\n"), re.DOTALL)
    if match is None:
        return {}
    try:
        keys = yaml.safe_load(match[1])
    except yaml.YAMLError:
        return {}
    if not isinstance(keys, dict):
        return {}
    return {key: keys[key] for key in _LICENSE_KEYS if isinstance(keys.get(key), str)}


def _front_matter(facts: CardFacts) -> str:
    keys: dict[str, object] = dict(facts.license)
    if re.fullmatch(r"[\w.-]+/[\w.-]+", facts.base_model):
        keys |= {"base_model": facts.base_model, "base_model_relation": "quantized"}
    keys["pipeline_tag"] = "text-generation"
    if facts.format != "gguf":
        keys["library_name"] = "transformers"
    bits = sorted({int(record.bits) for record in facts.modules if record.bits % 1 == 0})
    keys["tags"] = list(
        dict.fromkeys(["llmopt", facts.format, facts.method, *(f"{b}-bit" for b in bits)])
    )
    return f"---\n{yaml.safe_dump(keys, sort_keys=False, allow_unicode=True)}---\n"


def _summary(facts: CardFacts) -> str:
    stored = Counter(record.stored_as for record in facts.modules)
    kinds = ", ".join(f"{count:,} as {_code(kind)}" for kind, count in stored.most_common())
    rows = [
        ("Base model", _code(facts.base_model)),
        ("Method", _code(facts.scheme)),
        ("Format", _code(facts.format)),
        (
            "Quantized",
            f"{_count(len(facts.modules), 'layer')} ({kinds}), {facts.bits_per_weight:.3f} bits "
            "per weight on disk",
        ),
        (
            "Size of the weight files",
            f"{_megabytes(facts.source_bytes)} before, {_megabytes(facts.file_bytes)} after "
            f"({facts.file_bytes / facts.source_bytes:.1%})",
        ),
        ("Made with", f"llmopt {_text(facts.version)}"),
        ("SHA-256 of the source", _code(facts.source_sha256)),
    ]
    if facts.seconds is not None:
        rows.append(("Time", f"{facts.seconds:,.0f} s"))
    intro = f"{_code(facts.base_model)}, quantized with {_code(facts.method)}."
    return f"# {_text(facts.name)}\n\n{intro}\n\n{_table(('', ''), rows)}"


def _calibration(calibration: CalibrationFacts | None) -> str:
    if calibration is None:
        return "## Calibration\n\nNone: the method looks at weights only.\n"
    tokens = calibration.num_samples * calibration.sample_tokens
    rows = [
        ("Text", _code(calibration.source)),
        ("SHA-256 of the text", _code(calibration.text_sha256)),
        (
            "Samples",
            f"{calibration.num_samples:,} of {calibration.sample_tokens:,} tokens = {tokens:,}",
        ),
        ("Seed", str(calibration.seed)),
    ]
    findings = "".join(f"* {_text(line)}\n" for line in calibration.findings)
    return f"## Calibration\n\n{_table(('', ''), rows)}" + (f"\n{findings}" if findings else "")


def _losses(facts: CardFacts) -> str:
    measured = [record for record in facts.modules if record.relative_loss is not None]
    if not measured:
        return ""
    blocks: dict[str, list[ModuleRecord]] = {}
    for record in measured:
        match = _BLOCK.search(record.name)
        blocks.setdefault(match[1] if match else record.name, []).append(record)
    rows = [
        (block, str(len(records)), _number(fmean(map(_relative, records))), _worst_of(records))
        for block, records in blocks.items()
    ]
    worst = sorted(measured, key=_relative, reverse=True)[:WORST]
    worst_rows = [
        (
            _code(record.name),
            _code(record.stored_as),
            _number(record.loss),
            _number(record.relative_loss),
        )
        for record in worst
    ]
    return (
        "## Loss on the calibration tokens\n\n"
        "Mean squared error of a layer's output; relative: as a share of the output's mean "
        "square.\n\n"
        + _table(("Block", "Layers", "Mean relative loss", "Worst layer"), rows)
        + f"\nThe {_count(len(worst), 'worst layer')}:\n\n"
        + _table(("Layer", "Stored as", "Loss", "Relative loss"), worst_rows)
    )


def _damping(facts: CardFacts) -> str:
    """Layers whose Hessian needed more damping than asked for: an alarm, so it is shown."""
    if facts.damping is None:
        return ""
    raised = [r for r in facts.modules if r.damping is not None and r.damping > facts.damping]
    failed = [r for r in facts.modules if r.damping is None and r.relative_loss is not None]
    dead = [r for r in facts.modules if r.dead_columns]
    lines = [f"Damping of {facts.damping:g} was enough for every layer."]
    if raised or failed:
        lines = [f"Damping of {facts.damping:g} was raised for {_count(len(raised), 'layer')}."]
        lines += [f"* {_code(record.name)}: {record.damping:g}" for record in raised]
        lines += [f"* {_code(r.name)}: none was enough, rounded to nearest" for r in failed]
    if dead:
        total = sum(record.dead_columns or 0 for record in dead)
        lines.append(
            f"\n{_count(total, 'input')} of {_count(len(dead), 'layer')} gave zero for every token."
        )
    return "## Damping\n\n" + "\n".join(lines) + "\n"


def _portability(verdicts: Sequence[Verdict]) -> str:
    if not verdicts:
        return ""
    evidence = {"run": "tested", "source": "read in its code", "unverified": "unverified"}
    rows = [
        (
            f"{_text(v.engine)} {_text(v.version)}",
            v.status,
            _text(", ".join(v.kernels)),
            ", ".join(map(str, v.gpu_counts)),
            evidence[v.evidence],
            _text(v.reason),
        )
        for v in verdicts
    ]
    head = ("Engine", "Verdict", "Kernels", "GPUs", "Known how", "Remarks")
    return (
        "## Where it loads\n\nRules for the versions named; "
        '"tested" means that llmopt\'s own tests load files of this format with it, on a CPU.\n\n'
        + _table(head, rows)
    )


def _usage(facts: CardFacts) -> str:
    engines = [v.engine for v in facts.verdicts if v.status.startswith("loads")]
    blocks = [
        f"{engine}:\n\n{_fence(code, language)}"
        for engine, language, code in usage(facts.format, facts.name, facts.base_model, engines)
    ]
    return "## How to run it\n\n" + "\n".join(blocks)


def _smoke(smoke: SmokeTest | None) -> str:
    if smoke is None:
        return ""
    return (
        f"## Smoke test\n\nGreedy continuation of {_code(smoke.prompt)} by the written files:\n\n"
        + _fence(smoke.text, "text")
    )


def _reproduction(facts: CardFacts) -> str:
    return f"## Make it again\n\n{_fence(facts.command, 'bash')}"


def _worst_of(records: Sequence[ModuleRecord]) -> str:
    worst = max(records, key=_relative)
    return f"{_code(worst.name.rpartition('.')[2])} {_number(worst.relative_loss)}"


def _relative(record: ModuleRecord) -> float:
    assert record.relative_loss is not None, "only measured layers are compared"
    return record.relative_loss


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "".join(f"| {' | '.join(cells)} |\n" for cells in lines)


def _text(text: str) -> str:
    """Text as Markdown that shows it as it is, on one line."""
    return re.sub(r"([\\`*_{}\[\]<>#|~!])", r"\\\1", " ".join(text.split()))


def _code(text: str) -> str:
    """Text as an inline code span on one line; a bar is escaped for tables."""
    line = " ".join(text.split()).replace("|", "\\|")
    ticks = "`" * (_longest_ticks(line) + 1)
    pad = " " if "`" in line or not line else ""
    return f"{ticks}{pad}{line}{pad}{ticks}"


def _fence(text: str, language: str) -> str:
    ticks = "`" * max(3, _longest_ticks(text) + 1)
    return f"{ticks}{language}\n{text.rstrip()}\n{ticks}\n"


def _longest_ticks(text: str) -> int:
    return max((len(run) for run in re.findall("`+", text)), default=0)


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.3g}"


def _megabytes(num_bytes: int) -> str:
    return f"{num_bytes / 1e6:,.1f} MB"


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"
