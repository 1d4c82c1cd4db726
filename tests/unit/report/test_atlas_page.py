import re
from collections.abc import Callable
from dataclasses import replace
from html.parser import HTMLParser

import pytest

from llmopt.quality.atlas_report import AtlasPart, AtlasReport, Guess, WorstToken
from llmopt.report.atlas_page import additivity_sentence, render_atlas_page
from llmopt.results.schema import QualityBucket, QualityRecord, Verdict

VOID = {"meta", "br", "rect", "line"}


def part(label, kind, layer, kld):
    return AtlasPart(label, kind, layer, kld, (0.8 * kld, 1.3 * kld), 0.99)


@pytest.fixture
def report(make_quality: Callable[..., QualityRecord]) -> AtlasReport:
    quality = make_quality(
        base_name="a <base>",
        base_scheme="fp32",
        text_name="some & text",
        by_position=(QualityBucket("1-31", 100, 0.06, 0.9), QualityBucket("32-63", 100, 0.04, 0.9)),
        by_confidence=(QualityBucket("< 0.25", 200, 0.05, 0.9),),
    )
    token = WorstToken(
        window=1,
        position=17,
        kld=3.0,
        before="if a<b && c>d:\n",
        token="<script>alert(1)</script>",
        after='\t"quoted" {{ quality }}',
        base_probability=0.5,
        target_probability=0.001,
        base_guesses=(Guess("</td>", 0.5), Guess(" the", 0.1)),
        target_guesses=(Guess("&amp;", 0.9),),
    )
    return AtlasReport(
        target_name="w4 </title>",
        quality=quality,
        parts=(
            part("embedding", "embedding", None, 0.001),
            part("block 0", "block", 0, 0.03),
            part("block 0 attention", "attention", 0, 0.01),
            part("block 0 MLP", "mlp", 0, 0.02),
            part("block 1", "block", 1, 0.02),
            part("block 1 attention", "attention", 1, 0.015),
            part("block 1 MLP", "mlp", 1, 0.005),
        ),
        parts_kld_sum=0.051,
        worst_tokens=(token,),
    )


class Reader(HTMLParser):
    """All tags, attributes and text of a page; fails where elements do not nest."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.links: list[str] = []
        self.text = ""
        self.feed(page)
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.links += [value for name, value in attrs if name in ("src", "href", "action")]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data


def test_the_page_is_well_formed_and_needs_nothing_else(report):
    page = render_atlas_page(report)
    assert page.startswith("<!doctype html>")
    reader = Reader(page)
    assert "script" not in reader.tags
    assert reader.links == []
    assert not re.search(r"https?:|url\(|@import", page)


def test_text_is_shown_and_never_markup(report):
    reader = Reader(render_atlas_page(report))
    assert 'if a<b && c>d:↵<script>alert(1)</script>⇥"quoted" {{ quality }}' in reader.text
    assert "Where w4 </title> loses against a <base>" in reader.text
    assert "some & text" in reader.text
    assert "</td> 0.500" in reader.text


def test_there_is_a_bar_for_each_part_and_bucket_with_its_numbers(report):
    page = render_atlas_page(report)
    reader = Reader(page)
    assert reader.tags.count("svg") == 4
    assert reader.tags.count("rect") == 3 + 4 + 2 + 1
    assert page.count('class="whisker"') == 3 + 4
    assert "block 1 MLP: 0.005 nats per token [0.004, 0.0065], top-1 agreement 99.00%" in page
    assert "32-63: 0.04 nats per token over 100 tokens" in page
    labels = re.findall(r'<text class="tick" text-anchor="middle"[^>]*>([^<]*)<', page)
    assert labels[:5] == ["emb", "0", "1", "0", "1"]  # all parts, then the halves in pairs


def test_what_was_not_measured_is_left_out(report):
    whole = tuple(part for part in report.parts if part.kind not in ("attention", "mlp"))
    quality = replace(report.quality, by_position=(), by_confidence=())
    bare = replace(report, parts=whole, quality=quality, worst_tokens=())
    reader = Reader(render_atlas_page(bare))
    assert reader.tags.count("svg") == 1
    for title in ("Attention or MLP", "By position", "confidence", "worst tokens"):
        assert title not in reader.text


def test_the_key_names_only_what_is_drawn(report):
    assert "outside of the blocks" in render_atlas_page(report)
    inside = tuple(part for part in report.parts if part.layer is not None)
    assert "outside of the blocks" not in render_atlas_page(replace(report, parts=inside))


def test_a_verdict_is_shown(report):
    verdict = Verdict("worse", 9.0, (7.0, 11.0), "Worse than the base: 9 times the noise.")
    quality = replace(report.quality, verdict=verdict)
    assert verdict.text in Reader(render_atlas_page(replace(report, quality=quality))).text


@pytest.mark.parametrize(
    ("total", "said"),
    [(0.1, "cancel"), (0.051, "independent"), (0.02, "reinforce"), (0.0, "No part")],
)
def test_the_sum_of_the_parts_is_explained(report, total, said):
    assert said in additivity_sentence(replace(report, parts_kld_sum=total))
