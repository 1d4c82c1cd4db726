"""A damage atlas as one HTML page that needs nothing else: charts as inline SVG, no scripts.

Knows nothing about how the atlas was measured. The law: whatever a text or a name contains, it is
shown and never becomes markup, and the page asks the network for nothing.
"""

from collections.abc import Sequence
from importlib import resources

from jinja2 import Environment, StrictUndefined

from llmopt.quality.atlas_report import AtlasPart, AtlasReport
from llmopt.report.atlas_bars import Bar, BarChart, bar_chart
from llmopt.results.schema import QualityBucket

WIDE, NARROW = 960.0, 470.0  # pixels of a chart
TEMPLATE = "atlas_page.html"


def render_atlas_page(report: AtlasReport) -> str:
    """The page of an atlas, as HTML text."""
    environment = Environment(
        autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=StrictUndefined
    )
    environment.filters["visible"] = visible
    source = resources.files("llmopt.report").joinpath(TEMPLATE).read_text(encoding="utf-8")
    quality = report.quality
    page = environment.from_string(source).render(
        report=report,
        quality=quality,
        additivity=additivity_sentence(report),
        parts=_parts_chart(report.whole_parts, WIDE),
        halves=_parts_chart(report.halves, WIDE) if report.halves else None,
        by_position=_buckets_chart(quality.by_position),
        by_confidence=_buckets_chart(quality.by_confidence),
    )
    return page.lstrip()  # of the lines in front of it that only define macros


def additivity_sentence(report: AtlasReport) -> str:
    """What the sum of the parts' losses says about the whole."""
    ratio = report.additivity
    if ratio is None:
        return "No part of the model differs from the base."
    total = f"The parts one by one add up to {report.parts_kld_sum:.4g} nats"
    if ratio < 0.8:
        return f"{total}; together they lose less, {ratio:.2f} times that: errors cancel."
    if ratio > 1.25:
        return f"{total}; together they lose more, {ratio:.2f} times that: errors reinforce."
    return f"{total}, and together they lose {ratio:.2f} times that, as independent errors would."


def visible(text: str) -> str:
    """A piece of text with its line breaks and tabs shown as signs."""
    return text.replace("\r", "").replace("\n", "↵").replace("\t", "⇥")


def _parts_chart(parts: Sequence[AtlasPart], width: float) -> BarChart:
    return bar_chart([_part_bar(part) for part in parts], width)


def _part_bar(part: AtlasPart) -> Bar:
    low, high = part.kld_mean_ci
    return Bar(
        label=_short_label(part),
        value=part.kld_mean,
        title=(
            f"{part.label}: {part.kld_mean:.4g} nats per token [{low:.4g}, {high:.4g}],"
            f" top-1 agreement {part.top1_agreement:.2%}"
        ),
        style={"block": "a", "attention": "a", "mlp": "b"}.get(part.kind, "c"),
        interval=part.kld_mean_ci,
    )


def _short_label(part: AtlasPart) -> str:
    """A label as narrow as a bar; the halves of a block share the first one's."""
    if part.kind == "mlp":
        return ""
    names = {"embedding": "emb", "final norm": "norm"}
    return names.get(part.kind, part.kind) if part.layer is None else str(part.layer)


def _buckets_chart(buckets: Sequence[QualityBucket]) -> BarChart | None:
    """None: there are no buckets."""
    if not buckets:
        return None
    bars = [
        Bar(
            label=bucket.label,
            value=bucket.kld_mean,
            title=(
                f"{bucket.label}: {bucket.kld_mean:.4g} nats per token over {bucket.num_tokens:,}"
                f" tokens, top-1 agreement {bucket.top1_agreement:.2%}"
            ),
            style="a",
        )
        for bucket in buckets
    ]
    return bar_chart(bars, NARROW)
