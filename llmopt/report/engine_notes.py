"""The lines about engines that were compared: how they differ, and what came of it.

Knows nothing about layout. The law: engines are spoken of only where a recipe compares several of
one runtime under one load; the settings of two runtimes are not alike.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence

from llmopt.engine.speculation.stats import break_even_acceptance
from llmopt.report.engine_figures import EngineFigures, differ
from llmopt.report.rows import Row
from llmopt.results.schema import CellResult, Interval

ENGINE_DEFINITIONS = (
    "cache hits: prompt tokens found in the prefix cache / all; KV waste: slots of held cache "
    "blocks that hold nothing / all of them, mean over steps; KV MB: of the most blocks that "
    "requests held at once; drafts taken: drafted tokens that were accepted / all; tok/step: "
    "tokens that a request gets of a decode step."
)
ACTIVATIONS_DEFINITION = (
    "activations: what bfloat16 activations are rounded to before quantized weights on a CPU, for "
    "speed and for quality; bf16: not at all; auto: int8 before weights of fewer than 8 bits, else "
    "two int8 (int16)."
)
_SPECULATION = "speculation"
_ACTIVATIONS = "activations"
_NO_CHOICES = frozenset({"url", "model", "file_type"})  # what is served, and where


def engine_notes(
    results: Sequence[CellResult], rows: Sequence[Row], name: Callable[[Row], str]
) -> Iterator[str]:
    """Yield the notes for these results and their rows, which `name` calls by name."""
    pairs = list(zip(results, rows, strict=True))
    told: set[tuple[str, str]] = set()
    settings: set[str] = set()
    for result, row in pairs:
        others = [
            (other, of_other)
            for other, of_other in pairs
            if _setting_of(other) == _setting_of(result)
        ]
        differing = _differing(
            result.backend.settings, [other.backend.settings for other, _ in others]
        )
        if row.status != "ok" or not differing:
            continue
        if (row.recipe, row.target) not in told:
            told.add((row.recipe, row.target))
            settings |= {setting.partition(" ")[0] for setting in differing}
            yield f"Engine of {row.target}: {', '.join(differing)}."
        figures = [each.engine for _, each in others if each.engine is not None]
        wastes = _memory(row.engine) if differ(figures, "waste_share") else ()
        findings = [*_ratios(row), *wastes, *_drafts(row)]
        if findings:
            yield f"{name(row)}{_lengths(row)}: {'; '.join(findings)}."
    if settings - {_ACTIVATIONS}:
        yield ENGINE_DEFINITIONS
    if _ACTIVATIONS in settings:
        yield ACTIVATIONS_DEFINITION


def _setting_of(result: CellResult) -> tuple[object, ...]:
    """What engines have in common that are compared."""
    return result.recipe_name, result.load, result.backend.name


def _differing(own: Mapping[str, object], others: Sequence[Mapping[str, object]]) -> list[str]:
    """The settings, as "name value", that are not the same in all."""
    return [
        _setting(name, value)
        for name, value in own.items()
        if name not in _NO_CHOICES
        and any(name in other and other[name] != value for other in others)
    ]


def _setting(name: str, value: object) -> str:
    if name != _SPECULATION or not isinstance(value, dict):
        return f"{name} {_plain(value)}"
    text = f"{name} {value.get('proposer')}, at most {value.get('num_draft_tokens')} tokens"
    synthetic = value.get("synthetic_acceptance")
    return text if synthetic is None else f"{text}, synthetic acceptance {synthetic}"


def _plain(value: object) -> str:
    if value is None:
        return "none"
    return ("on" if value else "off") if isinstance(value, bool) else str(value)


def _ratios(row: Row) -> Iterator[str]:
    """What is better than the base, and by how much."""
    if row.is_base or row.speed is None:
        return
    speed = row.speed
    for label, ratio, interval in (
        ("throughput", speed.speedup, speed.speedup_ci),
        ("TTFT gain", speed.ttft_speedup, speed.ttft_speedup_ci),
        ("TPOT gain", speed.tpot_speedup, speed.tpot_speedup_ci),
    ):
        if ratio is not None:
            yield f"{label} {ratio:.2f}x{_interval(interval)}"


def _interval(interval: Interval | None) -> str:
    return "" if interval is None else f" [{interval[0]:.2f}, {interval[1]:.2f}]"


def _memory(figures: EngineFigures | None) -> Iterator[str]:
    if figures is None or figures.waste_share is None:
        return
    text = f"{100 * figures.waste_share:.1f} % of the held cache slots empty"
    shared, longest = figures.max_tokens_waste_share, figures.model_len_waste_share
    if shared is not None and longest is not None:
        text += (
            f" (contiguous rows of prompt + max_tokens: {100 * shared:.0f} %, of the longest "
            f"request: {100 * longest:.0f} %)"
        )
    yield text


def _drafts(row: Row) -> Iterator[str]:
    figures = row.engine
    if figures is None or figures.acceptance_rate is None or figures.mean_draft_tokens is None:
        return
    by_position = ", ".join(f"{100 * share:.0f}" for share in figures.acceptance_by_position)
    text = (
        f"{100 * figures.acceptance_rate:.0f} % of drafts of {figures.mean_draft_tokens:.1f} "
        f"tokens taken (by position {by_position} %)"
    )
    gain = row.speed.tpot_speedup if row.speed else None
    if figures.tokens_per_step is not None:
        text += f", {figures.tokens_per_step:.2f} tokens per step"
        length = round(figures.mean_draft_tokens)
        if gain and length and row.load is not None and row.load.concurrency == 1:
            needed = break_even_acceptance(length, figures.tokens_per_step / gain)
            text += ", no break-even" if needed is None else f", break-even at {100 * needed:.0f} %"
    yield text


def _lengths(row: Row) -> str:
    load = row.load
    return "" if load is None else f" ({load.prompt_tokens} + {load.output_tokens} tokens)"
